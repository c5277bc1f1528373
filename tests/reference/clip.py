"""What transformers makes of a CLIP model's folder, of token ids and of image files: the truth that tests hold us to.

    python tests/reference/clip.py MODEL IDS IMAGES TARGET

Needs torch, transformers and Pillow. IDS is a JSON file with lists of token ids, special tokens included; IMAGES is a
folder; TARGET becomes an `.npz` file of `texts`, and of `pixels` and `images` in the order of the files' names.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def main() -> None:
    """Do what the command line asks for."""
    folder, ids, images, target = (Path(each) for each in sys.argv[1:])
    model = CLIPModel.from_pretrained(folder).eval()
    process = CLIPImageProcessorPil.from_pretrained(folder)
    upright = [ImageOps.exif_transpose(Image.open(path)) for path in sorted(images.iterdir())]
    pixels = torch.cat([torch.as_tensor(np.array(process(each)["pixel_values"])) for each in upright])
    with torch.no_grad():
        texts = [
            model.get_text_features(input_ids=torch.tensor([each])).pooler_output
            for each in json.loads(ids.read_text())
        ]
        seen = model.get_image_features(pixel_values=pixels).pooler_output
    np.savez(target, texts=torch.cat(texts).numpy(), pixels=pixels.numpy(), images=seen.numpy())


if __name__ == "__main__":
    main()
