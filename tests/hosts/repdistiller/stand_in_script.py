"""A train script of RepDistiller's shape around the stand-in, with the calls that patch 0001 puts into the host's."""

from __future__ import annotations

import argparse
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn, optim

import tllm_plugin.hosts.repdistiller as tllm
from tests.hosts.repdistiller.stand_in import reference_epoch, stand_in

HOST = stand_in()


def parse_option() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name, default in (("epochs", 3), ("batch_size", 16), ("num_workers", 0), ("print_freq", 100), ("nce_k", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("path_t", "model_s", "dataset", "distill", "model_t", "mode"):
        parser.add_argument(f"--{name}", type=str, default=None, choices=["resnet8"] if name == "model_s" else None)
    opt = tllm.parse_student(parser)
    opt.alpha, opt.beta, opt.gamma = 0.9, 1.0, 1.0
    opt.save_folder = os.path.join("save", opt.distill + tllm.suffix(opt))
    os.makedirs(opt.save_folder, exist_ok=True)
    return opt


def validate(loader: Any, model: nn.Module, criterion: nn.Module, opt: Any) -> Any:
    model.eval()
    with torch.no_grad():
        results = [(model(image).argmax(1) == target).float() for image, target in loader]
    accuracy = 100 * torch.cat(results).mean().reshape(1)
    return accuracy, accuracy, 0.0


def main() -> None:
    # Not on import: doctest imports this file into a process that may have the real host's modules.
    sys.modules["models"] = SimpleNamespace(model_dict=HOST.model_dict)  # type: ignore[assignment]
    opt = parse_option()
    train_loader, val_loader, _, classes = tllm.load_images(opt)
    run = tllm.Run(opt, train_loader, val_loader)
    train_loader = run.train_loader
    model_t, model_s = (HOST.model_dict[name](num_classes=classes) for name in ("resnet14", "resnet8"))
    model_t.load_state_dict(torch.load(opt.path_t, weights_only=True)["model"])
    modules, trainable = nn.ModuleList([model_s]), nn.ModuleList([model_s])
    criteria = nn.ModuleList([nn.CrossEntropyLoss(), HOST.DistillKL(4)])
    if opt.distill in tllm.METHODS:
        model_s, criterion_kd = tllm.add_method(opt, modules, trainable, model_t)
    else:
        criterion_kd = HOST.RKDLoss()
    criteria.append(criterion_kd)
    optimizer = optim.SGD(trainable.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    modules.append(model_t)
    run.init(lambda: print("init stage"))
    best_acc = run.start(modules, criteria, optimizer)
    for epoch in run.epochs():
        train_acc, train_loss = run.train(reference_epoch, epoch, train_loader, modules, criteria, optimizer, opt)
        print("trained", epoch, train_loss)
        test_acc, _, _ = run.validate(validate, val_loader, model_s, criteria[0], opt)
        if test_acc > best_acc:
            best_acc = test_acc
            torch.save({"epoch": epoch, "model": model_s.state_dict()}, os.path.join(opt.save_folder, "best.pth"))
    print("best accuracy:", float(best_acc))
    torch.save({"model": model_s.state_dict()}, os.path.join(opt.save_folder, "last.pth"))


if __name__ == "__main__":
    main()
