"""Fine-tune a small model on this folder's rows and compare it with its base, by the `openai` package (`rich` draws).

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-lut-... python examples/support-assistant/finetune.py

Exits 1 when the job did not succeed, or when the validation loss did not fall.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

HERE = Path(__file__).parent
BASE = "SmolLM2-135M-Instruct"
SYSTEM = "You are Fern, who helps the customers of the instrument shop Brightwood Strings. Answer briefly."
QUESTIONS = (
    "How long can I return a guitar that I bought from you?",
    "How long is the warranty on a new cello?",
    "What humidity should I keep my violin at?",
)
HYPERPARAMETERS = {"n_epochs": 1, "batch_size": 8, "learning_rate_multiplier": 10}
console = Console()


def main() -> int:
    client = OpenAI()
    job = create_job(client)
    losses = follow(client, job.id)
    job = client.fine_tuning.jobs.retrieve(job.id)
    if job.status != "succeeded" or job.fine_tuned_model is None:
        console.print(f"[red]The job ended as {job.status}: {job.error.message if job.error else 'no reason given'}[/]")
        return 1
    compare(client, job.fine_tuned_model)
    return report_losses(losses)


def create_job(client: OpenAI) -> FineTuningJob:
    with console.status("Uploading the rows"):
        training, validation = (
            client.files.create(file=(HERE / name).open("rb"), purpose="fine-tune")
            for name in ("train.jsonl", "validation.jsonl")
        )
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=training.id,
        validation_file=validation.id,
        suffix="brightwood",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
    )
    console.print(f"Created [bold]{job.id}[/] on {BASE}")
    return job


def follow(client: OpenAI, job_id: str) -> list[float]:
    """Show events until the job ends; the losses over the whole validation file, in order."""
    losses: list[float] = []
    columns = (BarColumn(40), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("waiting in the queue", total=None)
        for event in events(client, job_id):
            data = event.data if isinstance(event.data, dict) else {}
            if event.type == "metrics" and "train_loss" in data and "full_valid_loss" not in data:
                text = f"step {data['step']}: loss {data['train_loss']:.3f}"
                progress.update(bar, total=data["total_steps"], completed=data["step"], description=text)
            else:
                progress.console.print(
                    f"[dim]{time.strftime('%H:%M:%S', time.localtime(event.created_at))}[/]  {event.message}"
                )
            if "full_valid_loss" in data:
                losses.append(float(data["full_valid_loss"]))
    return losses


def events(client: OpenAI, job_id: str) -> Iterator[FineTuningJobEvent]:
    """Every event once, oldest first, until the job has ended and its last event was seen."""
    seen: set[str] = set()
    num_quiet = 0
    while num_quiet < 2:
        has_ended = client.fine_tuning.jobs.retrieve(job_id).status in ("succeeded", "failed", "cancelled")
        fresh: list[FineTuningJobEvent] = []
        for event in client.fine_tuning.jobs.list_events(job_id, limit=50):
            if event.id in seen:
                break
            fresh.append(event)
        seen.update(event.id for event in fresh)
        yield from reversed(fresh)
        num_quiet = num_quiet + 1 if has_ended and not fresh else 0
        time.sleep(0.5)


def compare(client: OpenAI, tuned: str) -> None:
    """Ask both models the same questions and print the answers side by side."""
    table = Table("Question", f"Before: {BASE}", f"After: {tuned}", show_lines=True)
    with console.status("Asking both models the same questions"):
        for question in QUESTIONS:
            table.add_row(question, answer(client, BASE, question), f"[green]{answer(client, tuned, question)}[/]")
    console.print(table)


def answer(client: OpenAI, model: str, question: str) -> str:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=48)  # type: ignore[arg-type]
    return (reply.choices[0].message.content or "").strip()


def report_losses(losses: list[float]) -> int:
    if len(losses) < 2 or losses[-1] >= losses[0]:
        console.print(f"[red]The validation loss did not fall: {losses}[/]")
        return 1
    console.print(Panel(f"Validation loss: {losses[0]:.3f} before training, [bold green]{losses[-1]:.3f}[/] after"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
