"""The architectures whose checkpoints are read, by the model_type of their config.json."""

from em3_jax.features.families.bert import BERT
from em3_jax.features.families.cnn import EFFICIENTNET_LITE, MOBILENET_V2, MOBILENET_V3, RESNET, VGG
from em3_jax.features.families.family import Family
from em3_jax.features.families.swin import SWIN
from em3_jax.features.families.vit import CLIP, DINOV2, SIGLIP, VIT

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": BERT,
    "swin": SWIN,
    "vit": VIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "resnet": RESNET,
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v3": MOBILENET_V3,
    "efficientnet_lite": EFFICIENTNET_LITE,
    "vgg": VGG,
}
