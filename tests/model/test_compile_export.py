"""torch.compile without a graph break and torch.export, in training and evaluation, for any batch."""

import ast
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import ceit
import ceit.model
from ceit.model import CeiT

VARIANTS: list[dict[str, Any]] = [
    {},
    {"leff_norm": "none", "leff_class_token": "identity", "leff_last_activation": True, "lca_pos_embed": False},
    {"stem": "patch", "feed_forward": "mlp", "lca": False},
]
IMAGES = (2, 3, 32, 48)


@pytest.fixture(autouse=True)
def forget_compiled_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("changes", VARIANTS, ids=["ceit", "paper", "deit"])
def test_evaluation_compiles_to_one_graph(tiny: Callable[..., CeiT], changes: dict[str, Any]) -> None:
    model, images = tiny(**changes), torch.randn(IMAGES)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [*VARIANTS, {"skip_dead": True}], ids=["ceit", "paper", "deit", "lean"])
def test_training_compiles_to_one_graph_with_the_same_gradients(
    tiny: Callable[..., CeiT], changes: dict[str, Any]
) -> None:
    model, images = tiny(**changes).train(), torch.randn(IMAGES)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    live = [parameter for name, parameter in model.named_parameters() if not name.startswith("blocks.2.mlp")]
    wanted = torch.autograd.grad(model(images).square().sum(), live, allow_unused=True)
    got = torch.autograd.grad(compiled(images).square().sum(), live, allow_unused=True)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_one_graph_serves_every_batch_size(tiny: Callable[..., CeiT]) -> None:
    graphs: list[fx.GraphModule] = []

    def count(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    model = tiny()
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    with torch.no_grad():
        for batch in (2, 3, 7):
            images = torch.randn(batch, 3, 32, 48)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("changes", VARIANTS, ids=["ceit", "paper", "deit"])
def test_export_with_any_batch(tiny: Callable[..., CeiT], changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    with torch.no_grad():
        program = torch.export.export(
            model, (torch.randn(IMAGES),), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
        )
        images = torch.randn(5, 3, 32, 48)
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_one_graph_with_gradients_and_without(tiny: Callable[..., CeiT]) -> None:
    model, images = tiny(), torch.randn(IMAGES)
    traced: Any = torch.jit.trace(model, images)
    torch.testing.assert_close(traced(images), model(images), rtol=1e-5, atol=1e-5)


def test_gradients_of_each_image_by_vmap(tiny: Callable[..., CeiT]) -> None:
    model, images = tiny(), torch.randn(IMAGES)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def logit(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (image[None],))[0, 0]

    found = torch.func.vmap(torch.func.grad(logit), (None, 0))(weights, images)
    for image in range(2):
        wanted = torch.autograd.grad(model(images[image : image + 1])[0, 0], model.pos_embed)[0]
        torch.testing.assert_close(found["pos_embed"][image], wanted, rtol=1e-4, atol=1e-5)


def test_no_grid_is_derived_by_a_root() -> None:
    findings: list[str] = []
    for path in sorted(Path(ceit.model.__path__[0]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            root = isinstance(node, ast.Attribute | ast.Name) and "sqrt" in ast.unparse(node)
            half = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and ast.unparse(node.right) == "0.5"
            if root or half:
                findings.append(f"{path.name}: {ast.unparse(node)}")
    assert not findings


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_inductor_gives_the_same_logits_and_gradients(tiny: Callable[..., CeiT], training: bool) -> None:
    model, images = tiny().train(training), torch.randn(IMAGES)
    compiled: Any = torch.compile(model, fullgraph=True)
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
        return
    live = [parameter for name, parameter in model.named_parameters() if not name.startswith("blocks.2.mlp")]
    wanted = torch.autograd.grad(model(images).square().sum(), live)
    got = torch.autograd.grad(compiled(images).square().sum(), live)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ceit_tiny_patch16_224", "ceit_small_patch16_224"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_within_two_minutes_from_an_empty_cache(
    name: str, dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = ceit.create_model(name).eval()
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=False)
    batches = [torch.randn(number, 3, *model.config.image_hw) for number in ((2, 3) if dynamic else (2,))]
    if dynamic:
        compiled = torch.compile(model, fullgraph=True)
        torch._dynamo.mark_dynamic(batches[0], 0)
    began = time.perf_counter()
    with torch.no_grad():
        logits = [compiled(images) for images in batches]
        seconds = time.perf_counter() - began
        torch.testing.assert_close(logits, [model(images) for images in batches], rtol=1e-4, atol=1e-4)
    print(f"{name}, {'any batch' if dynamic else 'one batch'}: {seconds:.0f} s")
    assert seconds < 120
