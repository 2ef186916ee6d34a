"""The backbones that one is likely to want, by family, and what each family is good for: isotropic transformers here.

timm keeps the original weights of several CLIPs under two architectures. The short names take the one whose activation
(QuickGELU) is that of the training: a frozen network with another one gives other features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Backbones that were trained the same way, in several sizes."""

    advice: str  # one line: how it was trained, what for
    members: Mapping[str, str]  # short name -> timm id with its pretrained tag, small to large


TRANSFORMERS: dict[str, Family] = {
    "DINOv2": Family(
        "self-supervised on 142 M images; first choice for dense tasks and linear probes",
        {
            "dinov2-s": "vit_small_patch14_dinov2.lvd142m",
            "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
            "dinov2-l": "vit_large_patch14_dinov2.lvd142m",
            "dinov2-g": "vit_giant_patch14_dinov2.lvd142m",
        },
    ),
    "DINOv2 with registers": Family(
        "DINOv2 with four register tokens: no outlier patches, smoother maps of the late blocks",
        {
            "dinov2-reg-s": "vit_small_patch14_reg4_dinov2.lvd142m",
            "dinov2-reg-b": "vit_base_patch14_reg4_dinov2.lvd142m",
            "dinov2-reg-l": "vit_large_patch14_reg4_dinov2.lvd142m",
            "dinov2-reg-g": "vit_giant_patch14_reg4_dinov2.lvd142m",
        },
    ),
    "DINOv3": Family(
        "self-supervised on 1.7 G images, rotary positions: dense features also far above its native size",
        {
            "dinov3-s": "vit_small_patch16_dinov3.lvd1689m",
            "dinov3-s-plus": "vit_small_plus_patch16_dinov3.lvd1689m",
            "dinov3-b": "vit_base_patch16_dinov3.lvd1689m",
            "dinov3-l": "vit_large_patch16_dinov3.lvd1689m",
            "dinov3-h-plus": "vit_huge_plus_patch16_dinov3.lvd1689m",
            "dinov3-7b": "vit_7b_patch16_dinov3.lvd1689m",
        },
    ),
    "DINOv3 satellite": Family(
        "DINOv3 trained on 493 M satellite images, with their own mean and std: remote sensing",
        {"dinov3-l-sat": "vit_large_patch16_dinov3.sat493m"},
    ),
    "DINOv3 ConvNeXt": Family(
        "ConvNeXts distilled from DINOv3's 7B: a pyramid of dense maps, any input size",
        {
            "dinov3-convnext-t": "convnext_tiny.dinov3_lvd1689m",
            "dinov3-convnext-s": "convnext_small.dinov3_lvd1689m",
            "dinov3-convnext-b": "convnext_base.dinov3_lvd1689m",
            "dinov3-convnext-l": "convnext_large.dinov3_lvd1689m",
        },
    ),
    "DINO": Family(
        "self-supervised on ImageNet-1k: the older baseline; patches of 8 px give fine maps",
        {
            "dino-s16": "vit_small_patch16_224.dino",
            "dino-s8": "vit_small_patch8_224.dino",
            "dino-b16": "vit_base_patch16_224.dino",
            "dino-b8": "vit_base_patch8_224.dino",
        },
    ),
    "CLIP": Family(
        "OpenAI's image-text training: semantics, few shots, shifted domains",
        {
            "clip-b32": "vit_base_patch32_clip_quickgelu_224.openai",
            "clip-b16": "vit_base_patch16_clip_quickgelu_224.openai",
            "clip-l14": "vit_large_patch14_clip_quickgelu_224.openai",
            "clip-l14-336": "vit_large_patch14_clip_quickgelu_336.openai",
        },
    ),
    "OpenCLIP": Family(
        "CLIP trained in the open on LAION-2B",
        {
            "openclip-b16": "vit_base_patch16_clip_224.laion2b",
            "openclip-l14": "vit_large_patch14_clip_224.laion2b",
            "openclip-h14": "vit_huge_patch14_clip_224.laion2b",
        },
    ),
    "DataComp CLIP": Family(
        "CLIP on a filtered pool of 1.4 G pairs",
        {
            "datacomp-b16": "vit_base_patch16_clip_224.datacompxl",
            "datacomp-l14": "vit_large_patch14_clip_224.datacompxl",
        },
    ),
    "DFN CLIP": Family(
        "CLIP on pairs chosen by a filtering network; one of ComBo's four backbones (B/16)",
        {
            "dfn-clip-b16": "vit_base_patch16_clip_224.dfn2b",
            "dfn-clip-l14": "vit_large_patch14_clip_quickgelu_224.dfn2b",
            "dfn-clip-h14": "vit_huge_patch14_clip_quickgelu_224.dfn5b",
        },
    ),
    "MetaCLIP": Family(
        "CLIP with an openly described choice of 2.5 G pairs",
        {
            "metaclip-b32": "vit_base_patch32_clip_quickgelu_224.metaclip_2pt5b",
            "metaclip-b16": "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b",
            "metaclip-l14": "vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b",
            "metaclip-h14": "vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b",
        },
    ),
    "SigLIP": Family(
        "image-text training with a sigmoid loss; no class token, so use `mean` or the grid",
        {
            "siglip-b16": "vit_base_patch16_siglip_224.webli",
            "siglip-b16-512": "vit_base_patch16_siglip_512.webli",
            "siglip-l16": "vit_large_patch16_siglip_256.webli",
            "siglip-so400m": "vit_so400m_patch14_siglip_224.webli",
            "siglip-so400m-378": "vit_so400m_patch14_siglip_378.webli",
        },
    ),
    "SigLIP 2": Family(
        "SigLIP with captioning and self-distillation: better dense features; no class token",
        {
            "siglip2-b16": "vit_base_patch16_siglip_224.v2_webli",
            "siglip2-b16-512": "vit_base_patch16_siglip_512.v2_webli",
            "siglip2-l16": "vit_large_patch16_siglip_256.v2_webli",
            "siglip2-so400m": "vit_so400m_patch14_siglip_224.v2_webli",
            "siglip2-so400m-378": "vit_so400m_patch14_siglip_378.v2_webli",
            "siglip2-g": "vit_giantopt_patch16_siglip_256.v2_webli",
        },
    ),
    "PE core": Family(
        "Perception Encoder, image-text training; its best features lie before the last block",
        {
            "pe-core-t": "vit_pe_core_tiny_patch16_384.fb",
            "pe-core-s": "vit_pe_core_small_patch16_384.fb",
            "pe-core-b": "vit_pe_core_base_patch16_224.fb",
            "pe-core-l": "vit_pe_core_large_patch14_336.fb",
            "pe-core-g": "vit_pe_core_gigantic_patch14_448.fb",
        },
    ),
    "PE spatial": Family(
        "Perception Encoder tuned for dense tasks: segmentation, depth, detection",
        {
            "pe-spatial-t": "vit_pe_spatial_tiny_patch16_512.fb",
            "pe-spatial-s": "vit_pe_spatial_small_patch16_512.fb",
            "pe-spatial-b": "vit_pe_spatial_base_patch16_512.fb",
            "pe-spatial-l": "vit_pe_spatial_large_patch14_448.fb",
            "pe-spatial-g": "vit_pe_spatial_gigantic_patch14_448.fb",
        },
    ),
    "PE lang": Family(
        "Perception Encoder tuned to feed language models: documents, charts, fine text",
        {
            "pe-lang-l": "vit_pe_lang_large_patch14_448.fb",
            "pe-lang-g": "vit_pe_lang_gigantic_patch14_448.fb",
        },
    ),
    "TIPSv2": Family(
        "image-text and self-supervised training, one register: dense and global tasks; pixels stay in 0-1",
        {
            "tipsv2-b": "vit_base_patch14_reg1_tipsv2.webli",
            "tipsv2-l": "vit_large_patch14_reg1_tipsv2.webli",
            "tipsv2-so400m": "vit_so400m_patch14_reg1_tipsv2.webli",
        },
    ),
    "C-RADIO": Family(
        "distilled from several foundation models at once (CLIP, DINOv2, SAM kinds): one net for mixed tasks",
        {
            "c-radio-b": "vit_base_patch16_radio_v3.c_radio",
            "c-radio-l": "vit_large_patch16_radio_v3.c_radio",
            "c-radio-so400m": "vit_so400m_patch16_radio_v4.c_radio",
            "c-radio-h": "vit_huge_patch16_radio_v4.c_radio",
        },
    ),
    "AIMv2": Family(
        "autoregressive on pixels and captions: strong with attention pooling; no class token",
        {
            "aimv2-l": "aimv2_large_patch14_224.apple_pt",
            "aimv2-h": "aimv2_huge_patch14_224.apple_pt",
            "aimv2-1b": "aimv2_1b_patch14_224.apple_pt",
            "aimv2-3b": "aimv2_3b_patch14_224.apple_pt",
        },
    ),
    "EVA-02": Family(
        "masked image modelling towards CLIP features: a strong start for its size",
        {
            "eva02-ti": "eva02_tiny_patch14_224.mim_in22k",
            "eva02-s": "eva02_small_patch14_224.mim_in22k",
            "eva02-b": "eva02_base_patch14_224.mim_in22k",
            "eva02-l": "eva02_large_patch14_224.mim_m38m",
        },
    ),
    "EVA-02 CLIP": Family(
        "CLIP started from EVA-02: image-text semantics",
        {
            "eva02-clip-b16": "eva02_base_patch16_clip_224.merged2b",
            "eva02-clip-l14": "eva02_large_patch14_clip_224.merged2b",
        },
    ),
    "ViTamin": Family(
        "CLIP on DataComp-1B with a convolutional stem below the transformer; no class token",
        {
            "vitamin-s": "vitamin_small_224.datacomp1b_clip",
            "vitamin-b": "vitamin_base_224.datacomp1b_clip",
            "vitamin-l": "vitamin_large_224.datacomp1b_clip",
            "vitamin-xl": "vitamin_xlarge_256.datacomp1b_clip",
        },
    ),
    "MAE": Family(
        "masked autoencoder on ImageNet-1k: texture and layout, poor last-layer probes; take several or middle layers",
        {
            "mae-b": "vit_base_patch16_224.mae",
            "mae-l": "vit_large_patch16_224.mae",
            "mae-h": "vit_huge_patch14_224.mae",
        },
    ),
    "SAM": Family(
        "trained to segment anything at 1,024 px: edges and parts, weak semantics; no class token",
        {
            "sam-b": "samvit_base_patch16.sa1b",
            "sam-l": "samvit_large_patch16.sa1b",
            "sam-h": "samvit_huge_patch16.sa1b",
        },
    ),
    "SAM 2": Family(
        "Hiera trained to segment images and videos: a pyramid of sharp maps",
        {
            "sam2-t": "sam2_hiera_tiny.fb_r896_2pt1",
            "sam2-s": "sam2_hiera_small.fb_r896_2pt1",
            "sam2-b": "sam2_hiera_base_plus.fb_r896_2pt1",
            "sam2-l": "sam2_hiera_large.fb_r1024_2pt1",
        },
    ),
    "Hiera": Family(
        "hierarchical transformer, masked autoencoder on ImageNet-1k: a pyramid without convolutions",
        {
            "hiera-t": "hiera_tiny_224.mae",
            "hiera-s": "hiera_small_224.mae",
            "hiera-b": "hiera_base_224.mae",
            "hiera-l": "hiera_large_224.mae",
            "hiera-h": "hiera_huge_224.mae",
        },
    ),
    "AugReg": Family(
        "supervised on ImageNet-21k with heavy augmentation: the plain ViT baseline",
        {
            "augreg-ti": "vit_tiny_patch16_224.augreg_in21k",
            "augreg-s": "vit_small_patch16_224.augreg_in21k",
            "augreg-b32": "vit_base_patch32_224.augreg_in21k",
            "augreg-b": "vit_base_patch16_224.augreg_in21k",
            "augreg-b8": "vit_base_patch8_224.augreg_in21k",
            "augreg-l": "vit_large_patch16_224.augreg_in21k",
        },
    ),
    "ViT, first weights": Family(
        "supervised on ImageNet-21k, the first ViT paper's weights: ComBo's baseline on VTAB",
        {"orig-b": "vit_base_patch16_224.orig_in21k"},
    ),
    "DeiT III": Family(
        "supervised on ImageNet-21k, fine-tuned on 1k with a strong recipe",
        {
            "deit3-s": "deit3_small_patch16_224.fb_in22k_ft_in1k",
            "deit3-b": "deit3_base_patch16_224.fb_in22k_ft_in1k",
            "deit3-l": "deit3_large_patch16_224.fb_in22k_ft_in1k",
        },
    ),
    "NaFlex": Family(
        "ViT for many sizes, supervised on ImageNet-1k; four registers, no class token",
        {"naflex-b": "naflexvit_base_patch16_gap.e300_s576_in1k"},
    ),
    "NaFlex SigLIP 2": Family(
        "SigLIP 2 trained at many sizes and aspect ratios; loffta feeds it squares; no class token",
        {
            "naflex-siglip2-b": "naflexvit_base_patch16_siglip.v2_webli",
            "naflex-siglip2-so400m": "naflexvit_so400m_patch16_siglip.v2_webli",
        },
    ),
}
