"""Real exports: Conv, BatchNormalization and Add counts at or below those of the framework's own deploy form."""

from __future__ import annotations

import pytest

from models import skeletons, zoo
from onnxrep import optimize

NAMES = [n for n in skeletons.names() if "/train" in n]
VERIFIED = [
    "mmpose_rep_branchnorm/train_dynamic_bn",
    "mmyolo_repvgg_alpha/train_legacy",
    "repghostnet_050/train_dynamic",
    "sg_qarepvgg_alpha/train_dynamo",
    "sg_repvgg_alpha_se/train_legacy_bn",
    "mobileone_s0/train_dynamo_dynamic",
    "hf_rtdetr_r18/train_dynamo",
]


@pytest.mark.parametrize("name", NAMES)
def test_counts(name):
    row = zoo.fold_one(name, verify=False)
    assert row.reached, f"{row.after} above {row.goal}"


@pytest.mark.parametrize("name", VERIFIED)
def test_verified(name):
    row = zoo.fold_one(name)
    assert row.verdict == "verified"
    assert row.status == "folded"


@pytest.mark.parametrize("name", ["repghostnet_050/train_dynamic", "mobileone_s0/train_dynamo"])
def test_verified_in_half_precision(name):
    row = zoo.fold_one(name, narrow=True)
    assert (row.status, row.verdict) == ("folded", "verified")


@pytest.mark.parametrize("name", [f"{c}/{v}" for c in skeletons.CONTROLS for v in zoo.variants(c)])
def test_controls_keep_their_convolutions(name):
    row = zoo.fold_one(name, verify=False)
    assert row.reached
    assert row.after.bn <= row.before.bn


def test_folding_a_deploy_form_keeps_its_convolutions():
    model = skeletons.fill("sg_repvgg_alpha_se/deploy_legacy")
    assert optimize(model).status == "unchanged"
