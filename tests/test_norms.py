"""Norms in few passes and gradients by rows: what the model's own code computes, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from architectures import build
from torch import Tensor, nn

from xlift.tuning.embeddings import gradient_by_rows
from xlift.tuning.norms import RMS_NORMS, _by_kernel, _kind_of, fast_norms, rms_norm

WIDTH = 48
NORMS = {
    "llama": ("LlamaRMSNorm", RMS_NORMS[0]),
    "gemma3": ("Gemma3RMSNorm", RMS_NORMS[1]),
    "gemma4": ("Gemma4RMSNorm", RMS_NORMS[2]),
    "olmo2": ("Olmo2RMSNorm", RMS_NORMS[2]),
    "qwen3": ("Qwen3RMSNorm", RMS_NORMS[0]),
    "gpt_oss": ("GptOssRMSNorm", RMS_NORMS[2]),
}
OTHERS = ["layer norm", "no weight", "squared", "gated", "of no size"]


class SquaredRMSNorm(nn.Module):
    """Like the others by its name, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * x.square().mean(-1, keepdim=True)


class GatedRMSNorm(SquaredRMSNorm):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return x * gate


def norm_of(family: str) -> Any:
    module = getattr(transformers.models, family)
    made = getattr(getattr(module, f"modeling_{family}"), NORMS[family][0])(WIDTH)
    torch.manual_seed(4)
    nn.init.normal_(made.weight, mean=0.5)
    return made


def other(name: str) -> nn.Module:
    if name == "layer norm":
        return nn.LayerNorm(WIDTH)
    if name == "no weight":
        return nn.RMSNorm(WIDTH, 1e-6, elementwise_affine=False)
    made = GatedRMSNorm() if name == "gated" else SquaredRMSNorm()
    if name == "of no size":
        made.eps = None  # type: ignore[assignment]
    return made


def results(norm: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    own = x.detach().requires_grad_()
    norm.zero_grad()
    found = norm(own)
    found.backward(grad.to(found.dtype))
    return [one for one in (found.detach(), own.grad, next(norm.parameters()).grad) if one is not None]


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", list(NORMS))
def test_a_norm_in_few_passes_has_the_values_and_gradients_of_its_family(
    family: str, dtype: torch.dtype, trained: bool
) -> None:
    norm = norm_of(family).to(dtype).requires_grad_(trained)
    assert _kind_of(norm) == NORMS[family][1]
    x, grad = torch.randn(2, 2, 3, 5, WIDTH).to(dtype).transpose(2, 3)
    x[0, 0, 0] = 0  # what padding may hold
    wanted = results(norm, x, grad)
    with fast_norms(norm):
        assert "forward" in norm.__dict__
        found = results(norm, x, grad)
    assert "forward" not in norm.__dict__
    assert len(found) == len(wanted) == 2 + trained
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        rough = 1e-5 if dtype == torch.float32 else 8e-3
        assert (mine.float() - theirs.float()).norm() <= rough * theirs.float().norm()


@pytest.mark.parametrize("kind", RMS_NORMS)
def test_what_a_gpu_computes_is_the_same_norm(kind: Any) -> None:
    x, weight = torch.randn(7, WIDTH).bfloat16(), torch.randn(WIDTH).bfloat16()
    torch.testing.assert_close(_by_kernel(x, weight, 1e-6, kind), rms_norm(x, weight, 1e-6, kind), rtol=8e-3, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_such_norm_stays_as_it_is(name: str) -> None:
    norm = other(name)
    with fast_norms(norm):
        assert "forward" not in norm.__dict__


def test_all_norms_of_a_model_are_found_and_answers_are_given_by_its_own_code() -> None:
    model = build("gemma3_text")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        wanted = model(ids).logits
    with fast_norms(model):
        # Four a layer, two of queries and keys, and the last.
        assert sum("forward" in one.__dict__ for one in model.modules()) == 2 * 6 + 1
        with torch.no_grad():
            assert torch.equal(model(ids).logits, wanted)


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_embeddings_by_rows_is_the_whole_one(tied: bool) -> None:
    ids = torch.tensor([[5, 7, 5, 0, 9]])  # one comes twice, one is padding

    def gradients(model: Any) -> list[Tensor]:
        for scale in (1.0, 0.5):  # two micro-batches
            (model(ids).logits[:, ::2].square().sum() * scale).backward()
        return [one.grad for one in model.parameters()]

    plain, fast = (build("gemma3_text", tie_word_embeddings=tied).train() for _ in range(2))
    assert plain.get_input_embeddings().padding_idx == 0
    saved = {name: one.clone() for name, one in fast.state_dict().items()}
    wanted = gradients(plain)
    with gradient_by_rows(fast):
        found = gradients(fast)
        assert list(fast.state_dict()) == list(saved)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert fast.get_input_embeddings().weight is fast.get_parameter("model.embed_tokens.weight")
    assert not fast.get_input_embeddings().sparse
