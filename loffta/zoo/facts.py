"""Shapes and terms of the zoo at native size, as `python -m loffta.backbones.measure` writes it.

A file, because building the models takes half a minute and `loffta models` should take none of it. Tests compare it
with timm.
"""

from __future__ import annotations

from loffta.zoo.names import Facts

_A = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean, std
_B = ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143))  # mean, std
_C = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # mean, std
_D = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std
_E = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean, std

FACTS: dict[str, Facts] = {  # by short name
    "dinov2-s": Facts(518, 22, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((37, 384),) * 12),
    "dinov2-b": Facts(518, 87, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((37, 768),) * 12),
    "dinov2-l": Facts(518, 304, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((37, 1024),) * 24),
    "dinov2-g": Facts(518, 1136, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((37, 1536),) * 40),
    "dinov2-reg-s": Facts(518, 22, "apache-2.0", *_D, "bicubic", 1, 4, "blocks", ((37, 384),) * 12),
    "dinov2-reg-b": Facts(518, 87, "apache-2.0", *_D, "bicubic", 1, 4, "blocks", ((37, 768),) * 12),
    "dinov2-reg-l": Facts(518, 304, "apache-2.0", *_D, "bicubic", 1, 4, "blocks", ((37, 1024),) * 24),
    "dinov2-reg-g": Facts(518, 1136, "apache-2.0", *_D, "bicubic", 1, 4, "blocks", ((37, 1536),) * 40),
    "dinov3-s": Facts(256, 22, "dinov3-license", *_D, "bicubic", 1, 4, "blocks", ((16, 384),) * 12),
    "dinov3-s-plus": Facts(256, 29, "dinov3-license", *_D, "bicubic", 1, 4, "blocks", ((16, 384),) * 12),
    "dinov3-b": Facts(256, 86, "dinov3-license", *_D, "bicubic", 1, 4, "blocks", ((16, 768),) * 12),
    "dinov3-l": Facts(256, 303, "dinov3-license", *_D, "bicubic", 1, 4, "blocks", ((16, 1024),) * 24),
    "dinov3-h-plus": Facts(256, 841, "dinov3-license", *_D, "bicubic", 1, 4, "blocks", ((16, 1280),) * 32),
    "dinov3-7b": Facts(256, 6716, "dinov3-license", *_D, "bicubic", 1, 4, "blocks", ((16, 4096),) * 40),
    "dinov3-l-sat": Facts(256, 303, "dinov3-license", *_B, "bicubic", 1, 4, "blocks", ((16, 1024),) * 24),
    "dinov3-convnext-t": Facts(
        224, 28, "dinov3-license", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    "dinov3-convnext-s": Facts(
        224, 49, "dinov3-license", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    "dinov3-convnext-b": Facts(
        224, 88, "dinov3-license", *_D, "bicubic", 0, 0, "stages", ((56, 128), (28, 256), (14, 512), (7, 1024))
    ),
    "dinov3-convnext-l": Facts(
        224, 196, "dinov3-license", *_D, "bicubic", 0, 0, "stages", ((56, 192), (28, 384), (14, 768), (7, 1536))
    ),
    "dino-s16": Facts(224, 22, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((14, 384),) * 12),
    "dino-s8": Facts(224, 22, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((28, 384),) * 12),
    "dino-b16": Facts(224, 86, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "dino-b8": Facts(224, 86, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((28, 768),) * 12),
    "clip-b32": Facts(224, 88, "apache-2.0", *_C, "bicubic", 1, 0, "blocks", ((7, 768),) * 12),
    "clip-b16": Facts(224, 86, "apache-2.0", *_C, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "clip-l14": Facts(224, 304, "apache-2.0", *_C, "bicubic", 1, 0, "blocks", ((16, 1024),) * 24),
    "clip-l14-336": Facts(336, 304, "apache-2.0", *_C, "bicubic", 1, 0, "blocks", ((24, 1024),) * 24),
    "openclip-b16": Facts(224, 86, "apache-2.0", *_C, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "openclip-l14": Facts(224, 304, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((16, 1024),) * 24),
    "openclip-h14": Facts(224, 632, "apache-2.0", *_C, "bicubic", 1, 0, "blocks", ((16, 1280),) * 32),
    "datacomp-b16": Facts(224, 86, "apache-2.0", *_C, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "datacomp-l14": Facts(224, 304, "apache-2.0", *_C, "bicubic", 1, 0, "blocks", ((16, 1024),) * 24),
    "dfn-clip-b16": Facts(224, 86, "apple-ascl", *_C, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "dfn-clip-l14": Facts(224, 304, "apple-ascl", *_C, "bicubic", 1, 0, "blocks", ((16, 1024),) * 24),
    "dfn-clip-h14": Facts(224, 632, "apple-ascl", *_C, "bicubic", 1, 0, "blocks", ((16, 1280),) * 32),
    "metaclip-b32": Facts(224, 88, "cc-by-nc-4.0", *_C, "bicubic", 1, 0, "blocks", ((7, 768),) * 12),
    "metaclip-b16": Facts(224, 86, "cc-by-nc-4.0", *_C, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "metaclip-l14": Facts(224, 304, "cc-by-nc-4.0", *_C, "bicubic", 1, 0, "blocks", ((16, 1024),) * 24),
    "metaclip-h14": Facts(224, 632, "cc-by-nc-4.0", *_C, "bicubic", 1, 0, "blocks", ((16, 1280),) * 32),
    "siglip-b16": Facts(224, 93, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((14, 768),) * 12),
    "siglip-b16-512": Facts(512, 94, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((32, 768),) * 12),
    "siglip-l16": Facts(256, 316, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((16, 1024),) * 24),
    "siglip-so400m": Facts(224, 428, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((16, 1152),) * 27),
    "siglip-so400m-378": Facts(378, 428, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((27, 1152),) * 27),
    "siglip2-b16": Facts(224, 93, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((14, 768),) * 12),
    "siglip2-b16-512": Facts(512, 94, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((32, 768),) * 12),
    "siglip2-l16": Facts(256, 316, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((16, 1024),) * 24),
    "siglip2-so400m": Facts(224, 428, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((16, 1152),) * 27),
    "siglip2-so400m-378": Facts(378, 428, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((27, 1152),) * 27),
    "siglip2-g": Facts(256, 1163, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((16, 1536),) * 40),
    "pe-core-t": Facts(384, 6, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((24, 192),) * 12),
    "pe-core-s": Facts(384, 24, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((24, 384),) * 12),
    "pe-core-b": Facts(224, 94, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "pe-core-l": Facts(336, 317, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((24, 1024),) * 24),
    "pe-core-g": Facts(448, 1882, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((32, 1536),) * 50),
    "pe-spatial-t": Facts(512, 6, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((32, 192),) * 12),
    "pe-spatial-s": Facts(512, 22, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((32, 384),) * 12),
    "pe-spatial-b": Facts(512, 86, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((32, 768),) * 12),
    "pe-spatial-l": Facts(448, 304, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((32, 1024),) * 24),
    "pe-spatial-g": Facts(448, 1852, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((32, 1536),) * 50),
    "pe-lang-l": Facts(448, 291, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((32, 1024),) * 23),
    "pe-lang-g": Facts(448, 1741, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((32, 1536),) * 47),
    "tipsv2-b": Facts(448, 86, "apache-2.0", *_A, "bicubic", 1, 1, "blocks", ((32, 768),) * 12),
    "tipsv2-l": Facts(448, 304, "apache-2.0", *_A, "bicubic", 1, 1, "blocks", ((32, 1024),) * 24),
    "tipsv2-so400m": Facts(448, 413, "apache-2.0", *_A, "bicubic", 1, 1, "blocks", ((32, 1152),) * 27),
    "c-radio-b": Facts(512, 86, "nvidia-open-model-license", *_C, "bicubic", 1, 7, "blocks", ((32, 768),) * 12),
    "c-radio-l": Facts(512, 304, "nvidia-open-model-license", *_C, "bicubic", 1, 7, "blocks", ((32, 1024),) * 24),
    "c-radio-so400m": Facts(512, 414, "nvidia-open-model-license", *_C, "bicubic", 1, 9, "blocks", ((32, 1152),) * 27),
    "c-radio-h": Facts(512, 632, "nvidia-open-model-license", *_C, "bicubic", 1, 9, "blocks", ((32, 1280),) * 32),
    "aimv2-l": Facts(224, 309, "apple-ascl", *_C, "bicubic", 0, 0, "blocks", ((16, 1024),) * 24),
    "aimv2-h": Facts(224, 681, "apple-ascl", *_C, "bicubic", 0, 0, "blocks", ((16, 1536),) * 24),
    "aimv2-1b": Facts(224, 1235, "apple-ascl", *_C, "bicubic", 0, 0, "blocks", ((16, 2048),) * 24),
    "aimv2-3b": Facts(224, 2721, "apple-ascl", *_C, "bicubic", 0, 0, "blocks", ((16, 3072),) * 24),
    "eva02-ti": Facts(224, 6, "mit", *_C, "bicubic", 1, 0, "blocks", ((16, 192),) * 12),
    "eva02-s": Facts(224, 22, "mit", *_C, "bicubic", 1, 0, "blocks", ((16, 384),) * 12),
    "eva02-b": Facts(224, 86, "mit", *_C, "bicubic", 1, 0, "blocks", ((16, 768),) * 12),
    "eva02-l": Facts(224, 303, "mit", *_C, "bicubic", 1, 0, "blocks", ((16, 1024),) * 24),
    "eva02-clip-b16": Facts(224, 86, "mit", *_C, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "eva02-clip-l14": Facts(224, 304, "mit", *_C, "bicubic", 1, 0, "blocks", ((16, 1024),) * 24),
    "vitamin-s": Facts(224, 22, "mit", *_C, "bicubic", 0, 0, "blocks", ((14, 384),) * 14),
    "vitamin-b": Facts(224, 88, "mit", *_C, "bicubic", 0, 0, "blocks", ((14, 768),) * 14),
    "vitamin-l": Facts(224, 333, "mit", *_C, "bicubic", 0, 0, "blocks", ((14, 1024),) * 31),
    "vitamin-xl": Facts(256, 436, "mit", *_C, "bicubic", 0, 0, "blocks", ((16, 1152),) * 32),
    "mae-b": Facts(224, 86, "cc-by-nc-4.0", *_D, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "mae-l": Facts(224, 303, "cc-by-nc-4.0", *_D, "bicubic", 1, 0, "blocks", ((14, 1024),) * 24),
    "mae-h": Facts(224, 631, "cc-by-nc-4.0", *_D, "bicubic", 1, 0, "blocks", ((16, 1280),) * 32),
    "sam-b": Facts(1024, 90, "apache-2.0", *_D, "bicubic", 0, 0, "blocks", ((64, 768),) * 12),
    "sam-l": Facts(1024, 308, "apache-2.0", *_D, "bicubic", 0, 0, "blocks", ((64, 1024),) * 24),
    "sam-h": Facts(1024, 637, "apache-2.0", *_D, "bicubic", 0, 0, "blocks", ((64, 1280),) * 32),
    "sam2-t": Facts(
        896, 27, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((224, 96), (112, 192), (56, 384), (28, 768))
    ),
    "sam2-s": Facts(
        896, 34, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((224, 96), (112, 192), (56, 384), (28, 768))
    ),
    "sam2-b": Facts(
        896, 69, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((224, 112), (112, 224), (56, 448), (28, 896))
    ),
    "sam2-l": Facts(
        1024, 212, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((256, 144), (128, 288), (64, 576), (32, 1152))
    ),
    "hiera-t": Facts(
        224, 27, "cc-by-nc-4.0", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    "hiera-s": Facts(
        224, 34, "cc-by-nc-4.0", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    "hiera-b": Facts(
        224, 51, "cc-by-nc-4.0", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    "hiera-l": Facts(
        224, 213, "cc-by-nc-4.0", *_D, "bicubic", 0, 0, "stages", ((56, 144), (28, 288), (14, 576), (7, 1152))
    ),
    "hiera-h": Facts(
        224, 671, "cc-by-nc-4.0", *_D, "bicubic", 0, 0, "stages", ((56, 256), (28, 512), (14, 1024), (7, 2048))
    ),
    "augreg-ti": Facts(224, 10, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((14, 192),) * 12),
    "augreg-s": Facts(224, 30, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((14, 384),) * 12),
    "augreg-b32": Facts(224, 104, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((7, 768),) * 12),
    "augreg-b": Facts(224, 103, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "augreg-b8": Facts(224, 103, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((28, 768),) * 12),
    "augreg-l": Facts(224, 326, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((14, 1024),) * 24),
    "orig-b": Facts(224, 86, "apache-2.0", *_E, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "deit3-s": Facts(224, 22, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((14, 384),) * 12),
    "deit3-b": Facts(224, 87, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((14, 768),) * 12),
    "deit3-l": Facts(224, 304, "apache-2.0", *_D, "bicubic", 1, 0, "blocks", ((14, 1024),) * 24),
    "naflex-b": Facts(384, 87, "apache-2.0", *_E, "bicubic", 0, 4, "blocks", ((24, 768),) * 12),
    "naflex-siglip2-b": Facts(384, 93, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((24, 768),) * 12),
    "naflex-siglip2-so400m": Facts(384, 428, "apache-2.0", *_E, "bicubic", 0, 0, "blocks", ((24, 1152),) * 27),
    "convnext-t": Facts(
        224, 45, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    "convnext-s": Facts(
        224, 66, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    "convnext-b": Facts(
        224, 110, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((56, 128), (28, 256), (14, 512), (7, 1024))
    ),
    "convnext-l": Facts(
        224, 230, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((56, 192), (28, 384), (14, 768), (7, 1536))
    ),
    "convnextv2-t": Facts(
        224, 28, "cc-by-nc-4.0", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))
    ),
    "convnextv2-b": Facts(
        224, 88, "cc-by-nc-4.0", *_D, "bicubic", 0, 0, "stages", ((56, 128), (28, 256), (14, 512), (7, 1024))
    ),
    "convnextv2-l": Facts(
        224, 196, "cc-by-nc-4.0", *_D, "bicubic", 0, 0, "stages", ((56, 192), (28, 384), (14, 768), (7, 1536))
    ),
    "convnext-clip-b": Facts(
        256, 88, "apache-2.0", *_C, "bicubic", 0, 0, "stages", ((64, 128), (32, 256), (16, 512), (8, 1024))
    ),
    "convnext-clip-l": Facts(
        256, 200, "apache-2.0", *_C, "bicubic", 0, 0, "stages", ((64, 192), (32, 384), (16, 768), (8, 1536))
    ),
    "swin-t": Facts(224, 44, "mit", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))),
    "swin-s": Facts(224, 66, "mit", *_D, "bicubic", 0, 0, "stages", ((56, 96), (28, 192), (14, 384), (7, 768))),
    "swin-b": Facts(224, 109, "mit", *_D, "bicubic", 0, 0, "stages", ((56, 128), (28, 256), (14, 512), (7, 1024))),
    "swin-l": Facts(224, 229, "mit", *_D, "bicubic", 0, 0, "stages", ((56, 192), (28, 384), (14, 768), (7, 1536))),
    "swinv2-t": Facts(256, 28, "mit", *_D, "bicubic", 0, 0, "stages", ((64, 96), (32, 192), (16, 384), (8, 768))),
    "swinv2-b": Facts(192, 109, "mit", *_D, "bicubic", 0, 0, "stages", ((48, 128), (24, 256), (12, 512), (6, 1024))),
    "swinv2-l": Facts(192, 229, "mit", *_D, "bicubic", 0, 0, "stages", ((48, 192), (24, 384), (12, 768), (6, 1536))),
    "efficientnet-lite0": Facts(
        224, 5, "apache-2.0", *_E, "bicubic", 0, 0, "stages", ((112, 16), (56, 24), (28, 40), (14, 112), (7, 320))
    ),
    "efficientnet-lite1": Facts(
        240, 5, "apache-2.0", *_E, "bicubic", 0, 0, "stages", ((120, 16), (60, 24), (30, 40), (15, 112), (8, 320))
    ),
    "efficientnet-lite2": Facts(
        260, 6, "apache-2.0", *_E, "bicubic", 0, 0, "stages", ((130, 16), (65, 24), (33, 48), (17, 120), (9, 352))
    ),
    "efficientnet-lite3": Facts(
        300, 8, "apache-2.0", *_E, "bilinear", 0, 0, "stages", ((150, 24), (75, 32), (38, 48), (19, 136), (10, 384))
    ),
    "efficientnet-lite4": Facts(
        380, 13, "apache-2.0", *_E, "bilinear", 0, 0, "stages", ((190, 24), (95, 32), (48, 56), (24, 160), (12, 448))
    ),
    "efficientnetv2-s": Facts(
        300, 48, "apache-2.0", *_E, "bicubic", 0, 0, "stages", ((150, 24), (75, 48), (38, 64), (19, 160), (10, 256))
    ),
    "efficientnetv2-m": Facts(
        384, 81, "apache-2.0", *_E, "bicubic", 0, 0, "stages", ((192, 24), (96, 48), (48, 80), (24, 176), (12, 512))
    ),
    "efficientnetv2-l": Facts(
        384, 145, "apache-2.0", *_E, "bicubic", 0, 0, "stages", ((192, 32), (96, 64), (48, 96), (24, 224), (12, 640))
    ),
    "resnet-50": Facts(
        224, 26, "apache-2.0", *_D, "bicubic", 0, 0, "stages", ((112, 64), (56, 256), (28, 512), (14, 1024), (7, 2048))
    ),
}
