"""Train one of torchvision's detectors on a COCO file, in the manner of torchvision's references/detection.

python examples/train_torchvision.py instances.json images           # torchvision's random choice of RoIs
python examples/train_torchvision.py instances.json images --hard    # one line more: OHEM
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import get_model
from torchvision.ops import box_convert
from torchvision.transforms.functional import to_tensor

import ohem


class CocoBoxes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """What torchvision's detectors take, flipped by chance. Crowds are left out, as in torchvision's script."""

    def __init__(self, annotations: Path, images: Path) -> None:
        document = json.loads(annotations.read_text())
        self.folder, self.images = images, document["images"]
        self.labels = {category["id"]: label for label, category in enumerate(document["categories"], start=1)}
        self.objects = {image["id"]: [] for image in self.images}
        for one in document["annotations"]:
            if not one.get("iscrowd"):
                self.objects[one["image_id"]].append((*one["bbox"], self.labels[one["category_id"]]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = to_tensor(Image.open(self.folder / self.images[index]["file_name"]).convert("RGB"))
        objects = torch.tensor(self.objects[self.images[index]["id"]], dtype=torch.float32).view(-1, 5)
        boxes = box_convert(objects[:, :4], "xywh", "xyxy")
        if torch.rand(()) < 0.5:
            image, boxes[:, [0, 2]] = image.flip(-1), image.shape[-1] - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": objects[:, 4].long()}


def train(
    model: nn.Module, loader: DataLoader, epochs: int, lr: float, lr_steps: list[int], warm_up: int = 1000
) -> Iterator[dict[str, float]]:
    """Make one step of SGD for each batch, and give its losses. The learning rate warms up, then falls in steps."""
    device, weights = next(model.parameters()).device, [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=1e-4)
    falling = torch.optim.lr_scheduler.MultiStepLR(optimizer, lr_steps)
    first = max(1, min(warm_up, len(loader) - 1))
    warming = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 1000, total_iters=first)
    model.train()
    for _ in range(epochs):
        for batch in loader:
            images = [image.to(device) for image, _ in batch]
            targets = [{name: value.to(device) for name, value in target.items()} for _, target in batch]
            losses = model(images, targets)
            loss = sum(losses.values())
            if not loss.isfinite():
                raise SystemExit(f"loss: found {loss.item()}; allowed: finite numbers (a lower --lr may help)")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warming.step()
            yield {name: value.item() for name, value in losses.items()}
        falling.step()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--hard", action="store_true", help="train on the hardest RoIs (OHEM)")
    parser.add_argument("--model", default="fasterrcnn_resnet50_fpn")
    parser.add_argument("--weights-backbone", help="DEFAULT downloads torchvision's; without it they are random")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--lr", type=float, default=0.0025, help="for two images a step")
    parser.add_argument("--lr-steps", type=int, nargs="+", default=[16, 22], help="epochs, to a tenth after each")
    parser.add_argument("--output", type=Path, default=Path("detector.pth"))
    options = parser.parse_args(arguments)

    data = CocoBoxes(options.annotations, options.images)
    loader = DataLoader(data, batch_size=2, shuffle=True, num_workers=2, collate_fn=list)
    classes = len(data.labels) + 1
    model = get_model(options.model, weights=None, weights_backbone=options.weights_backbone, num_classes=classes)
    if options.hard:
        ohem.use_sampler(model, ohem.HardSampler(rois_per_image=128))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for step, losses in enumerate(train(model, loader, options.epochs, options.lr, options.lr_steps)):
        if step % 20 == 0:
            print(step, *(f"{name} {value:.3f}" for name, value in losses.items()), flush=True)
    torch.save(model.state_dict(), options.output)


if __name__ == "__main__":
    main()
