"""A descendant of RepDistiller in a few lines, with what descendants do otherwise: written into a folder, then run.

Its script lies in a package folder under another name, has comments, quotes and neighbours of its own, works in
`main_worker` with `global best_acc`, makes its loaders after the optimizer, returns four values, weighs KD by an option
of its own, keeps an object among its options, wants a GPU and `tensorboard_logger`, and has these methods:

kd, mine (a loss that nobody else knows), srrl (of the name of one of TLLM's), coupled (relations between rows), fixed
(a layer as wide as a batch), projector (predicts by a module of its own), rescaled (tested by what no module returns),
fails.
"""

from __future__ import annotations

from pathlib import Path

METHODS = ("kd", "mine", "srrl", "coupled", "rescaled", "fixed", "projector", "fails")

SCRIPT = """
from __future__ import print_function
import argparse, os, re
import tensorboard_logger as tb_logger
import torch
import torch.nn as nn
from models import model_dict, Projector
from dataset.small import get_loaders
from helper.loops import LOOP as train, validate_distill   # an alias, and a comment

best_acc = 0

def parse_option():
    parser = argparse.ArgumentParser("training")
    parser.add_argument("--print-freq", type=int, default=100)
    parser.add_argument('--batch_size', type=int, default=16)
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--dataset', default="small", choices=["small"])
    parser.add_argument('--model_s', type=str, default='tiny')
    parser.add_argument('--path-t', type=str, default=None)
    parser.add_argument("--distill", type=str, default="kd")
    parser.add_argument('-d', '--div', type=float, default=0.5, help='weight of KD')
    parser.add_argument('-b', '--beta', type=float, default=0.5)
    parser.add_argument('--pretrained', type=str, default='no')  # in TLLM's way
    opt = parser.parse_args(
    )
    opt.device = torch.device("cpu")
    opt.model_t = re.split("_", opt.path_t.split('/')[-2])[0]
    opt.model_name = "S:{}_{}".format(opt.model_s, opt.distill)
    if opt.div != 0.5:
        opt.model_name += "_d"
    opt.save_folder = os.path.join("save", opt.model_name)
    os.makedirs(opt.save_folder, exist_ok=True)
    return opt

def main():
    main_worker(0, parse_option())

def main_worker(gpu, opt):
    global best_acc
    opt.gpu = gpu
    model_t = model_dict[opt.model_t](num_classes=100)
    model_t.load_state_dict(torch.load(opt.path_t)['model'])
    model_s = model_dict[opt.model_s](num_classes=100)
    module_list = nn.ModuleList([]); trainable_list = nn.ModuleList([])
    module_list.append(model_s); trainable_list.append(model_s)
    if opt.distill == "kd":
        criterion_kd = nn.MSELoss()
    elif opt.distill in ["mine", "srrl", "coupled", "rescaled"]:
        criterion_kd = nn.L1Loss()
    elif opt.distill == 'fixed':
        criterion_kd = nn.MSELoss()
        weigh = nn.Linear(opt.batch_size, 4)
        module_list.append(weigh); trainable_list.append(weigh)
    elif opt.distill == 'projector':
        criterion_kd = nn.MSELoss()
        projector = Projector()
        module_list.append(projector); trainable_list.append(projector)
    elif opt.distill == 'fails':
        criterion_kd = nn.no_such_loss()
    criterion_list = nn.ModuleList([nn.CrossEntropyLoss(), nn.KLDivLoss(reduction="batchmean"), criterion_kd])
    module_list.append(model_t)
    optimizer = torch.optim.SGD(trainable_list.parameters(), lr=0.05, momentum=0.9)
    if torch.cuda.is_available():
        module_list.cuda(); criterion_list.cuda()
    train_loader, val_loader = get_loaders(opt.batch_size)
    logger = tb_logger.Logger(logdir=opt.save_folder, flush_secs=2)
    for epoch in range(opt.epochs):  # counted from 0
        acc, acc5, loss, seconds = train(epoch, train_loader, module_list, criterion_list, optimizer, opt)   # here
        logger.log_value('train_loss', loss, epoch)
        print("trained {}".format(epoch), loss > 0, acc5 >= acc, seconds >= 0)
        test_acc, _ = validate_distill( val_loader, module_list, criterion_list[0], opt )
        if test_acc > best_acc:
            best_acc = test_acc
            torch.save({'model': model_s.state_dict()}, os.path.join(opt.save_folder, 'best.pth'))
        torch.save({'model': model_s.state_dict()}, os.path.join(opt.save_folder, 'last.pth'))
    print("best accuracy", float(best_acc))

if __name__ == "__main__":
    main()
"""

HELPERS = """
import torch
import torch.nn.functional as F
from .util import accuracy

def losses(module_list, criterion_list, image, target, opt):
    feat_s, logit_s = module_list[0](image, is_feat=True)
    with torch.no_grad():
        feat_t, logit_t = module_list[-1](image, is_feat=True)
    loss_kd = criterion_list[2](logit_s, logit_t)
    if opt.distill == "mine":
        loss_kd = criterion_list[2](feat_s[-1].tanh(), feat_t[-1].tanh()) * 3
    elif opt.distill == "coupled":
        loss_kd = criterion_list[2](feat_s[-1] @ feat_s[-1].t(), feat_t[-1] @ feat_t[-1].t())
    elif opt.distill == "fixed":
        pairs = [f[-1].reshape(len(target), -1) @ f[-1].reshape(len(target), -1).t() for f in (feat_s, feat_t)]
        loss_kd = criterion_list[2](module_list[1](pairs[0]), module_list[1](pairs[1]))
    elif opt.distill == "projector":
        logit_s = module_list[1](feat_s[-1])
        loss_kd = criterion_list[2](logit_s, logit_t)
    div = criterion_list[1](F.log_softmax(logit_s, 1), F.softmax(logit_t, 1))
    return logit_s, criterion_list[0](logit_s, target) + opt.div * div + opt.beta * loss_kd

def train_distill(epoch, train_loader, module_list, criterion_list, optimizer, opt):
    for module in module_list:
        module.train()
    module_list[-1].eval()
    top1 = top5 = total = count = 0
    for idx, (image, target) in enumerate(train_loader):
        if opt.distill == "fixed" and image.shape[0] < opt.batch_size:
            continue
        image, target = image.cuda(opt.gpu), target.cuda(opt.gpu)
        logit_s, loss = losses(module_list, criterion_list, image, target, opt)
        acc1, acc5 = accuracy(logit_s, target, topk=(1, 2))
        top1, top5, total, count = top1 + acc1.item(), top5 + acc5.item(), total + loss.item(), count + 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if idx % opt.print_freq == 0:
            print("Epoch: [{}][{}/{}]".format(epoch + 1, idx, len(train_loader)))
    n = max(count, 1)
    data_time = 0.0
    return top1 / n, top5 / n, total / n, data_time

def train_clipped(epoch, train_loader, module_list, criterion_list, optimizer, opt):
    for image, target in train_loader:
        loss = losses(module_list, criterion_list, image, target, opt)[1]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module_list[0].parameters(), 0.1)
        optimizer.step()
    return 0.0, 0.0, 0.0, 0.0

def validate_distill(val_loader, module_list, criterion, opt):
    for module in module_list:
        module.eval()
    right = count = 0
    with torch.no_grad():
        for image, target in val_loader:
            image, target = image.cuda(opt.gpu), target.cuda(opt.gpu)
            feats, logits = module_list[0](image, is_feat=True)
            if opt.distill == "projector":
                logits = module_list[1](feats[-1])
            if opt.distill == "rescaled":
                logits = logits * 2
            criterion(logits, target)
            right, count = right + accuracy(logits, target)[0].item() * len(target), count + len(target)
    return right / count, 0.0
"""

UTIL = """
import torch

def accuracy(output, target, topk=(1,)):
    with torch.no_grad():
        _, pred = output.topk(max(topk), 1, True, True)
        pred = pred.t()
        correct = pred.eq(target.view(1, -1).expand_as(pred))
        return [correct[:k].view(-1).float().sum(0, keepdim=True).mul_(100.0 / target.size(0)) for k in topk]
"""

MODELS = """
import torch.nn as nn
import torch.nn.functional as F

class Tiny(nn.Module):
    def __init__(self, num_classes=100):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.fc = nn.Conv2d(8, 12, 3, stride=2), nn.Linear(12, num_classes)

    def forward(self, x, is_feat=False):
        f0 = F.relu(self.norm(self.first(x)))
        f1 = F.relu(self.second(f0))
        pooled = f1.mean((2, 3))
        logits = self.fc(pooled)
        return ([f0, f1, pooled], logits) if is_feat else logits

class Projector(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 100)

    def forward(self, x):
        return self.head(x)

model_dict = {"tiny": Tiny}
"""

DATA = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

class Small(Dataset):
    def __init__(self, count, transform):
        self.data = np.random.RandomState(count).randint(0, 256, (count, 8, 8, 3)).astype(np.uint8)
        self.targets = [index % 100 for index in range(count)]
        self.transform = transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]

def scaled(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

def noisy(image):
    return scaled(image) + 0.05 * torch.randn(3, 8, 8)

def get_loaders(batch_size):
    train = DataLoader(Small(600, noisy), batch_size=batch_size, shuffle=True)
    return train, DataLoader(Small(100, scaled), batch_size=20)
"""


def write_fork(root: Path, *, loop: str = "train_distill", script: str = "distil/train_student_small.py") -> Path:
    """Write the checkout and return its root."""
    folder = (root / script).parent
    files = {
        "models/__init__.py": MODELS,
        "dataset/small.py": DATA,
        "helper/loops.py": HELPERS,
        "helper/util.py": UTIL,
        Path(script).name: SCRIPT.replace("LOOP", loop),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"))
    for name in ("dataset", "helper"):
        (folder / name / "__init__.py").touch()
    return root
