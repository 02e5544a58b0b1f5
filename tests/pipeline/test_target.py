from pathlib import Path

import targets
from pipeline.core import TensorSpec
from pipeline.target import Exported, Lowered


def test_exported_is_read_back_in_another_folder_when_it_was_written_as_json() -> None:
    lowered = Lowered(
        path=Path("somewhere/model.onnx"),
        variant="int8",
        inputs=(TensorSpec(name="image", shape=(3, 8, 8)),),
        outputs=("logits",),
        batch_size=1,
        notes=("softmax is in float",),
    )
    target = targets.get("onnx")
    exported = Exported(
        target=target,
        status="ok",
        optimized=lowered,
        original=lowered,
        variants={"fp16": lowered, "int8_dynamic": "no such form"},
    )
    content = exported.to_json()
    assert b"somewhere" not in content
    read = Exported.from_json(content, target, Path("elsewhere"))
    assert read == exported.in_folder(Path("elsewhere"))
    assert read.target is target
    assert read.variants["fp16"].path == Path("elsewhere/model.onnx")
