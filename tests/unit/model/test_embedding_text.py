"""The adapter on sentence embeddings, and models that have one."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tessera.model import AdapterConfig, Clip, load_pretrained, open_clip_weights
from tessera.model.config import ClipConfig, clip_config
from tessera.model.open_clip_config import from_open_clip, open_clip_config
from tessera.model.pretrained import OPEN_CLIP_WEIGHTS
from tessera.training.tensor_file import save_tensors

E = 24
DEMO = clip_config("tessera-demo")


def config(**adapter: object) -> ClipConfig:
    return dataclasses.replace(
        DEMO,
        adapter=AdapterConfig(embedding_dim=E, **adapter),  # pyright: ignore[reportArgumentType]
    )


def batch(clip: Clip) -> tuple[torch.Tensor, ...]:
    """Two whole random images, their captions of three and two tokens, and embeddings."""
    draw = torch.Generator().manual_seed(1)
    n, columns = clip.config.vision.num_patches, clip.config.vision.patch_dim
    return (
        torch.randint(0, 256, (2 * n, columns), generator=draw, dtype=torch.uint8),
        torch.arange(n, dtype=torch.int32).repeat(2),
        torch.tensor([0, n, 2 * n], dtype=torch.int32),
        torch.tensor([49406, 5, 49407, 49406, 49407], dtype=torch.int32),
        torch.tensor([0, 3, 5], dtype=torch.int32),
        torch.randn(2, E, generator=draw).half() * 300,
    )


def test_the_adapter_is_the_published_formula() -> None:
    """Fact sheet: unit length, four times x + W2 GELU(W1 LN(x)), then a projection of LN(x)."""
    torch.manual_seed(0)
    clip = Clip(config())
    state = {name: value.double() for name, value in clip.adapter.state_dict().items()}  # pyright: ignore[reportOptionalMemberAccess]
    embeddings = batch(clip)[-1]
    x = embeddings.double() / embeddings.double().norm(dim=1, keepdim=True)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (E,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    for n in range(4):
        name = f"blocks.{n}"
        hidden = norm(x, f"{name}.ln") @ state[f"{name}.up.weight"].T + state[f"{name}.up.bias"]
        assert hidden.shape == (2, 2 * E)
        x = x + F.gelu(hidden) @ state[f"{name}.down.weight"].T + state[f"{name}.down.bias"]
    expected = norm(x, "ln") @ state["proj.weight"].T + state["proj.bias"]
    torch.testing.assert_close(
        clip.encode_embeddings(embeddings).double(), expected, atol=1e-5, rtol=1e-5
    )


def test_parameters_are_as_many_as_the_fact_sheet_derives() -> None:
    """D=4096 and a shared space of 1280: 273.8 M."""
    large = dataclasses.replace(DEMO, embed_dim=1280, adapter=AdapterConfig(embedding_dim=4096))
    with torch.device("meta"):
        clip = Clip(large)
    assert clip.adapter is not None
    assert sum(p.numel() for p in clip.adapter.parameters()) == pytest.approx(273.8e6, rel=1e-3)


def test_an_adapter_replaces_the_text_tower_or_stands_beside_it() -> None:
    torch.manual_seed(0)
    alone = Clip(config())
    assert alone.text is None
    torch.manual_seed(0)
    both = Clip(config(replaces_text=False))
    inputs = batch(both)
    images, texts, _ = both(*inputs)
    assert texts.shape == (4, DEMO.embed_dim)
    torch.testing.assert_close(texts[0::2], F.normalize(both.encode_embeddings(inputs[5]), dim=1))
    torch.testing.assert_close(texts[1::2], F.normalize(both.encode_text(*inputs[3:5]), dim=1))
    torch.testing.assert_close(images, F.normalize(both.encode_image(*inputs[:3]), dim=1))


def test_distilling_pairs_the_adapter_with_its_teacher() -> None:
    clip = Clip(config(replaces_text=False))
    clip.distilling = True
    inputs = batch(clip)
    teacher, student, _ = clip(*inputs)
    torch.testing.assert_close(teacher, F.normalize(clip.encode_text(*inputs[3:5]), dim=1))
    assert not teacher.requires_grad
    assert student.requires_grad


def test_what_a_model_cannot_read_is_refused() -> None:
    alone, ordinary = Clip(config(encoder="m@1 (mean)")), Clip(DEMO)
    inputs = batch(alone)
    with pytest.raises(ValueError, match=r"embeddings of m@1 \(mean\)"):
        alone.encode_text(*inputs[3:5])
    with pytest.raises(ValueError, match="the batch has none"):
        alone(*inputs[:5])
    with pytest.raises(ValueError, match=rf"\[T, {E}\] for this model, got \[2, 7\]"):
        alone.encode_embeddings(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="no adapter"):
        ordinary.encode_embeddings(inputs[5])


def test_the_config_goes_to_json_and_back() -> None:
    theirs = config(encoder="m@1 (mean)", replaces_text=False, layers=2)
    again = from_open_clip(theirs.name, open_clip_config(theirs))
    assert again.adapter == theirs.adapter
    assert again.text == theirs.text


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("a@b@0123456789abcdef (mean, 512 tokens)", "sha256:0123456789abcdef (mean, 512 tokens)"),
        ("llama-3-8b-cc@ (unknown, field short)", "llama-3-8b-cc (unknown, field short)"),
    ],
    ids=["folder", "import"],
)
def test_an_older_model_knows_its_encoder_by_content(before: str, now: str) -> None:
    stored = open_clip_config(config(encoder=before))
    found = from_open_clip("older", stored).adapter
    assert found is not None
    assert found.encoder == now


def test_open_clip_stops_at_such_a_model() -> None:
    import open_clip

    options = open_clip_config(config())
    with pytest.raises(TypeError, match="tessera_adapter"):
        open_clip.CLIP(**options)


def test_a_clip_gives_its_towers_to_a_model_with_an_adapter(tmp_path) -> None:
    torch.manual_seed(2)
    source = Clip(DEMO)
    path = tmp_path / OPEN_CLIP_WEIGHTS
    save_tensors(open_clip_weights.dump(source), path)
    wider = dataclasses.replace(config(), embed_dim=160)
    target = Clip(wider)
    assert target.image.proj is not None
    fresh = target.image.proj.detach().clone()
    notes = " ".join(load_pretrained(target, path))
    assert "text tower was left out" in notes
    assert "no adapter" in notes
    assert "visual.proj is [128, 128] there and [128, 160] here" in notes
    assert torch.equal(target.image.proj, fresh)
    for name, value in source.image.state_dict().items():
        if name != "proj":
            assert torch.equal(target.image.state_dict()[name], value), name


def test_an_adapter_of_another_encoder_is_refused(tmp_path) -> None:
    import json

    source = Clip(config(encoder="first@1 (mean)"))
    save_tensors(open_clip_weights.dump(source), tmp_path / OPEN_CLIP_WEIGHTS)
    content = {"model_cfg": open_clip_config(source.config)}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    assert load_pretrained(Clip(config(encoder="first@1 (mean)")), tmp_path) == []
    with pytest.raises(ValueError, match=r"'first@1 \(mean\)' there, 'second@2 \(cls\)' here"):
        load_pretrained(Clip(config(encoder="second@2 (cls)")), tmp_path)
