"""Base models reach the catalogue once, whatever interrupts it, and rooms can fetch them from there."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.builders.bases import make_tiny_base
from tests.unit.registry.test_gguf_import import write_gguf
from tests.unit.registry.test_hf_import import make_hf_directory

from luthier_common.kit.bases import fetch_base, find_base
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore
from luthier_registry.catalogue import Catalogue
from luthier_registry.claims import Claims
from luthier_registry.settings import RegistrySettings
from luthier_registry.store import Store

MakeCatalogue = Callable[..., Catalogue]


@pytest.fixture
def make_catalogue(db: Database, objects: ObjectStore, tmp_path: Path) -> MakeCatalogue:
    def make(sources: dict[str, Path], *, default: str = "Tiny", name: str = "registry-1") -> Catalogue:
        values: dict[str, Any] = {
            "mongo_url": "mongodb://unused",
            "kafka_url": "unused",
            "objects_url": "file:///unused",
        }
        settings = RegistrySettings(**values, home=tmp_path / "home", default_base=default, base_sources=sources)
        return Catalogue(Store(db), objects, Claims(db, name, 5.0), settings)

    return make


async def test_a_bundle_directory_becomes_a_base_that_rooms_can_fetch(
    db: Database, objects: ObjectStore, make_catalogue: MakeCatalogue, tmp_path: Path
) -> None:
    bundle = make_tiny_base(tmp_path / "bundle")
    catalogue = make_catalogue({"Tiny": bundle})
    assert await catalogue.missing() == "the base model Tiny is being prepared"
    await catalogue.look()
    assert await catalogue.missing() is None
    base = await find_base(db, "tiny")
    assert base is not None
    assert base["digest"] == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert (base["_id"], base["context_length"]) == ("Tiny", 256)
    fetched = await fetch_base(db, objects, "Tiny", tmp_path / "cache")
    assert (fetched / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()
    assert (await db["objects"].find_one({"_id": base["key"]}))["references"] == [f"base/{base['digest']}"]


async def test_two_bases_never_answer_to_one_name(
    db: Database, make_catalogue: MakeCatalogue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is known in lower case too, until that is a base of its own; a third finds its alias taken."""
    first, second = make_tiny_base(tmp_path / "first"), make_tiny_base(tmp_path / "second", seed=2)
    await make_catalogue({"Tiny": first}).look()
    assert (await find_base(db, "tiny") or {})["_id"] == "Tiny"
    await make_catalogue({"Tiny": first, "tiny": second}).look()
    await make_catalogue({"Tiny": first, "tiny": second, "TINY": first}).look()
    assert {base["_id"]: base["aliases"] async for base in db["bases"].find()} == {"Tiny": [], "tiny": [], "TINY": []}
    assert [(await find_base(db, name) or {})["_id"] for name in ("Tiny", "tiny", "TINY")] == ["Tiny", "tiny", "TINY"]
    assert "the alias of another base is a base of its own now" in caplog.messages
    assert "another base answers to an alias already" in caplog.messages


async def test_a_gguf_is_converted_once_by_a_child(
    db: Database, objects: ObjectStore, make_catalogue: MakeCatalogue, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    await make_catalogue({"Tiny": tmp_path / "tiny.gguf"}).look()
    base = await find_base(db, "Tiny")
    assert base is not None
    assert base["revision"] == hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    assert list((tmp_path / "home" / "registry").iterdir()) == [], "the uploaded bundle is not kept twice"
    await make_catalogue({"Tiny": tmp_path / "tiny.gguf"}).look()
    assert (await find_base(db, "Tiny"))["updated_at"] == base["updated_at"], "a restart converts nothing"
    await objects.delete(base["key"] + "bundle.json")
    await make_catalogue({"Tiny": tmp_path / "tiny.gguf"}).look()
    again = await find_base(db, "Tiny")
    assert again is not None
    assert again["created_at"] == base["created_at"] <= base["updated_at"] < again["updated_at"]
    assert await objects.head(base["key"] + "bundle.json") is not None, "lost bytes are made again"


async def test_an_interrupted_upload_is_done_again(
    db: Database, objects: ObjectStore, make_catalogue: MakeCatalogue, tmp_path: Path, faults: Any
) -> None:
    sources = {"Tiny": make_tiny_base(tmp_path / "bundle")}
    faults("registry.mid_upload=raise*1", "", str(tmp_path / "faults.log"))
    with pytest.raises(TransientError):
        await make_catalogue(sources).look()
    assert await find_base(db, "Tiny") is None
    await asyncio.gather(make_catalogue(sources).look(), make_catalogue(sources, name="registry-2").look())
    assert await find_base(db, "Tiny") is not None
    await fetch_base(db, objects, "Tiny", tmp_path / "cache")


async def test_a_source_that_is_no_model_is_named_and_keeps_no_other_from_being_served(
    db: Database, make_catalogue: MakeCatalogue, tmp_path: Path
) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    catalogue = make_catalogue(
        {"Bad": tmp_path / "bad.gguf", "Tiny": make_tiny_base(tmp_path / "bundle")}, default="Bad"
    )
    await catalogue.look()
    assert "gguf_unreadable" in (await catalogue.missing() or "")
    assert await find_base(db, "Tiny") is not None
    assert "LUTHIER_BASE_SOURCES" in (await make_catalogue({}, default="Nowhere").missing() or "")


async def test_a_path_that_is_no_model_is_told_and_taken_when_it_becomes_one(
    db: Database, make_catalogue: MakeCatalogue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "models" / "tiny"
    catalogue = make_catalogue({"Tiny": path})
    await catalogue.look()
    assert await catalogue.missing() == f"source_missing: {path} does not exist where the registry runs"
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith(f"LUTHIER_BASE_SOURCES: Tiny from {path} is not a base model: source_missing: ")
    await catalogue.look()
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 1, "it is not told at every look"
    path.mkdir(parents=True)
    (path / "pytorch_model.bin").write_bytes(b"x")
    await catalogue.look()
    assert (await catalogue.missing() or "").startswith("source_unknown: ")
    make_hf_directory(path)
    await catalogue.look()
    assert await catalogue.missing() is None
    assert await find_base(db, "tiny") is not None


async def test_a_hugging_face_directory_is_taken_once_and_again_when_it_changes(
    db: Database, objects: ObjectStore, make_catalogue: MakeCatalogue, tmp_path: Path
) -> None:
    source = make_hf_directory(tmp_path / "Tiny-Instruct")
    await make_catalogue({"Tiny": source}).look()
    base = await find_base(db, "Tiny")
    assert base is not None
    assert (base["licence"], base["source"]["file"], base["converter"]) == (
        "apache-2.0", "Tiny-Instruct", "luthier_registry.hf_import/2",
    )  # fmt: skip
    assert base["revision"] == base["source"]["sha256"]
    assert list((tmp_path / "home" / "registry").iterdir()) == []
    fetched = await fetch_base(db, objects, "Tiny", tmp_path / "cache")
    assert not (fetched / "model.safetensors").is_symlink()
    assert (fetched / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    await make_catalogue({"Tiny": source}).look()
    assert (await find_base(db, "Tiny"))["updated_at"] == base["updated_at"], "a restart takes nothing"
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    await make_catalogue({"Tiny": source}).look()
    assert (await find_base(db, "Tiny"))["licence"] == "mit"


async def test_why_a_directory_is_refused_reaches_the_reader_of_readyz(
    make_catalogue: MakeCatalogue, tmp_path: Path
) -> None:
    source = make_hf_directory(tmp_path / "Tiny-Instruct")
    (source / "tokenizer_config.json").write_text("{}")
    catalogue = make_catalogue({"Tiny": source})
    await catalogue.look()
    assert (await catalogue.missing() or "").startswith("base_no_chat_template: Tiny-Instruct has no chat template")


async def test_a_damaged_bundle_is_refused(db: Database, make_catalogue: MakeCatalogue, tmp_path: Path) -> None:
    bundle = make_tiny_base(tmp_path / "bundle")
    (bundle / "text.json").write_text("{}")
    catalogue = make_catalogue({"Tiny": bundle})
    await catalogue.look()
    assert await catalogue.missing() == "bundle_damaged: text.json is not as bundle.json says"
    assert await find_base(db, "Tiny") is None


@pytest.mark.parametrize("kind", ["bundle", "directory"])
async def test_a_file_that_cannot_be_read_is_named_and_taken_when_it_can(
    db: Database, make_catalogue: MakeCatalogue, tmp_path: Path, kind: str
) -> None:
    """As on a failing disk: every read of it is an error of the system."""
    source = (make_tiny_base if kind == "bundle" else make_hf_directory)(tmp_path / "Tiny")
    weights = source / "model.safetensors"
    weights.rename(tmp_path / "kept")
    weights.symlink_to("/proc/self/mem")
    catalogue = make_catalogue({"Tiny": source})
    assert catalogue.trouble() is None
    await catalogue.look()
    assert (await catalogue.missing() or "").startswith("io_error: Input/output error: "), await catalogue.missing()
    assert catalogue.trouble() == "io_error"
    weights.unlink()
    (tmp_path / "kept").rename(weights)
    await catalogue.look()
    assert (await catalogue.missing(), catalogue.trouble()) == (None, None)
    assert await find_base(db, "Tiny") is not None
