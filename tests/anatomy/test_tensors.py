"""Tensors in dataclasses, mappings and named tuples."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import torch

from initlab.anatomy.tensors import moved, tensors

IDS = torch.arange(12).view(2, 6)


@dataclass
class Output:
    logits: torch.Tensor
    extra: tuple = ()


def test_tensors_are_found_in_dataclasses_and_mappings():
    a, b = torch.zeros(1), torch.zeros(2)
    assert [t.numel() for t in tensors(UserDict(x=Output(a, (b, Output))))] == [1, 2]


def test_containers_keep_their_kind_on_the_way_to_the_device():
    Pair = namedtuple("Pair", "a b")
    there = moved(Pair(IDS, UserDict(x=IDS)), torch.device("meta"))
    assert isinstance(there, Pair) and isinstance(there.b, UserDict)
    assert {there.a.device.type, there.b["x"].device.type} == {"meta"}
