"""The rival of `loffta predict` in start.py: what a user of timm alone would write for the class of one image.

Run:     python pipelines/benchmarks/bare_predict.py MODEL WEIGHTS IMAGE
"""

import sys

import timm
import torch
from PIL import Image
from torchvision.transforms.functional import normalize, pil_to_tensor

name, weights_path, image_path = sys.argv[1:]
model = timm.create_model(name, checkpoint_path=weights_path).eval()
with Image.open(image_path) as image:
    pixels = pil_to_tensor(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)).float() / 255
config = model.pretrained_cfg
with torch.inference_mode():
    probabilities = model(normalize(pixels, config["mean"], config["std"])[None]).softmax(dim=1)
print(int(probabilities.argmax()), float(probabilities.max()))
