"""`luthier chat`."""

import click
from openai.types.chat import ChatCompletionMessageParam

from luthier_cli.session import Session, Verb, pass_session


@click.command(cls=Verb)
@click.argument("model")
@click.argument("text")
@click.option("--system", help="Instructions before the text.")
@click.option("--max-tokens", type=click.IntRange(min=1))
@click.option("--temperature", type=click.FloatRange(0, 2))
@pass_session
def chat(
    session: Session,
    *,
    model: str,
    text: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
) -> None:
    """Say something to a model and show its answer."""
    said: list[ChatCompletionMessageParam] = [{"role": "user", "content": text}]
    if system:
        said.insert(0, {"role": "system", "content": system})
    options = {"max_tokens": max_tokens, "temperature": temperature}
    answer = session.client.chat.completions.create(
        model=model,
        messages=said,
        extra_body={name: value for name, value in options.items() if value is not None},
    )
    session.output.line(answer, answer.choices[0].message.content or "")
