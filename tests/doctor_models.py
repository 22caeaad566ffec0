"""Models that nobody here wrote, randomly initialised and with the smallest inputs that they take, for the doctor.

Of a family that differs in size alone there is one.

``MODELS`` maps a name to a function that builds (model, closure); the part before the first slash is the collection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from doctor_blocks import BLOCKS
from torch import Tensor, nn

Built = tuple[nn.Module, Callable[[Any], Tensor]]
CLASSES = 4


def classifier(model: nn.Module, x: Tensor) -> Built:
    """Return a model and its per-example losses; of several outputs (auxiliary heads) the sum."""
    y = torch.arange(len(x)) % CLASSES

    def closure(model: Any) -> Tensor:
        out = model(x)
        outputs = [out] if isinstance(out, Tensor) else [logits for logits in out if logits is not None]
        return sum(F.cross_entropy(logits, y, reduction="none") for logits in outputs)

    return model, closure


def image(name: str, size: int = 64, **options: Any) -> Built:
    import torchvision

    model = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **options)
    return classifier(model, torch.randn(2, 3, size, size))


def video(name: str, frames: int = 8, size: int = 32, **options: Any) -> Built:
    import torchvision

    model = getattr(torchvision.models.video, name)(weights=None, num_classes=CLASSES, **options)
    return classifier(model, torch.randn(2, 3, frames, size, size))


def segmentation(name: str, size: int = 64, **options: Any) -> Built:
    import torchvision

    make = getattr(torchvision.models.segmentation, name)
    model = make(weights=None, weights_backbone=None, num_classes=CLASSES, **options)
    x, y = torch.randn(2, 3, size, size), torch.randint(CLASSES, (2, size, size))

    def closure(model: Any) -> Tensor:
        losses = [F.cross_entropy(out, y, reduction="none").mean((1, 2)) for out in model(x).values()]
        return torch.stack(losses).sum(0)

    return model, closure


def detection(name: str, **options: Any) -> Built:
    import torchvision

    make = getattr(torchvision.models.detection, name)
    model = make(weights=None, weights_backbone=None, **{"num_classes": CLASSES, **options})
    images = [torch.rand(3, 96, 96) for _ in range(2)]
    boxes = torch.tensor([[8.0, 8.0, 60.0, 56.0], [30.0, 20.0, 90.0, 84.0]])
    target: dict[str, Tensor] = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    if name.startswith("maskrcnn"):
        target["masks"] = torch.zeros(2, 96, 96, dtype=torch.uint8)
        target["masks"][0, 8:56, 8:60] = target["masks"][1, 20:84, 30:90] = 1
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.stack([boxes[:, :2] + 10, boxes[:, 2:] - 10], 1)
        target["keypoints"] = torch.cat([target["keypoints"], torch.ones(2, 2, 1)], 2)
        target["labels"] = torch.tensor([1, 1])
    return model, lambda m: sum(m(images, [target, target]).values())


def flow(name: str) -> Built:
    import torchvision

    model = getattr(torchvision.models.optical_flow, name)(weights=None)
    first, second, truth = torch.rand(2, 3, 128, 128), torch.rand(2, 3, 128, 128), torch.randn(2, 2, 128, 128)
    return model, lambda m: (m(first, second, num_flow_updates=2)[-1] - truth).abs().mean((1, 2, 3))


def hugging_face(name: str, attention: str) -> Built:
    """Build a Hugging Face model from a tiny configuration; its own loss."""
    import transformers as hf

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = torch.randint(3, 40, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    text = {"input_ids": ids, "attention_mask": mask}
    batch: dict[str, Tensor]
    if name == "bert":
        config = hf.BertConfig(vocab_size=40, intermediate_size=32, max_position_embeddings=16, **small)
        kind, batch = hf.BertForMaskedLM, {**text, "labels": labels}
    elif name == "gpt2":
        config = hf.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)
        kind, batch = hf.GPT2LMHeadModel, {**text, "labels": labels}
    elif name == "llama":
        config = hf.LlamaConfig(vocab_size=40, intermediate_size=32, num_key_value_heads=1, **small)
        kind, batch = hf.LlamaForCausalLM, {**text, "labels": labels}
    elif name == "t5":
        config = hf.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        config.decoder_start_token_id = 0
        kind, batch = hf.T5ForConditionalGeneration, {**text, "labels": labels}
    elif name == "vit":
        config = hf.ViTConfig(image_size=16, patch_size=4, intermediate_size=32, num_labels=CLASSES, **small)
        kind = hf.ViTForImageClassification
        batch = {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 1])}
    else:
        config = hf.WhisperConfig(
            vocab_size=40,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_mel_bins=8,
            max_source_positions=10,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
        kind, batch = hf.WhisperForConditionalGeneration, {"input_features": torch.randn(2, 8, 20), "labels": labels}
    config._attn_implementation = attention
    config.use_cache = False
    return kind(config), lambda m: m(**batch).loss


IMAGES: dict[str, dict[str, Any]] = {
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
    "mnasnet0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "regnet_y_400mf": {},
    "efficientnet_b0": {},
    "googlenet": {"init_weights": False},
    "resnet18": {},
    "densenet121": {},
    "resnet50": {},
    "efficientnet_v2_s": {},
    "inception_v3": {"size": 75, "init_weights": False, "aux_logits": False},
    "convnext_tiny": {"size": 32},
    "swin_t": {"size": 32},
    "swin_v2_t": {"size": 32},
    "alexnet": {},
    "vit_b_16": {"size": 32, "image_size": 32},
    "vgg11_bn": {"size": 32, "init_weights": False},
    "maxvit_t": {"size": 224},
}
SEGMENTERS = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
SMALL = {"min_size": 96, "max_size": 128}
DETECTORS: dict[str, dict[str, Any]] = {
    "ssdlite320_mobilenet_v3_large": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": SMALL,
    "retinanet_resnet50_fpn": SMALL,
    "fcos_resnet50_fpn": SMALL,
    "maskrcnn_resnet50_fpn": SMALL,
    "keypointrcnn_resnet50_fpn": {**SMALL, "num_classes": 2, "num_keypoints": 2},
    "ssd300_vgg16": {},
}
VIDEOS: dict[str, dict[str, Any]] = {
    "r3d_18": {},
    "mc3_18": {},
    "r2plus1d_18": {},
    "swin3d_t": {"size": 64},
    "mvit_v1_b": {"frames": 16, "size": 224},
    "s3d": {"frames": 16, "size": 224},
}

MODELS: dict[str, Callable[[], Built]] = {
    **{f"blocks/{name}": make for name, make in BLOCKS.items()},
    **{
        f"transformers/{name}-{attention}": partial(hugging_face, name, attention)
        for name in ("bert", "gpt2", "llama", "t5", "vit", "whisper")
        for attention in ("eager", "sdpa")
    },
    **{f"segmentation/{name}": partial(segmentation, name) for name in SEGMENTERS},
    **{f"classification/{name}": partial(image, name, **options) for name, options in IMAGES.items()},
    **{f"detection/{name}": partial(detection, name, **options) for name, options in DETECTORS.items()},
    "flow/raft_small": partial(flow, "raft_small"),
    **{f"video/{name}": partial(video, name, **options) for name, options in VIDEOS.items()},
}
