"""Tampered files are rejected, and intact ones are accepted."""

import pytest

from tests.tampering import held_out, kinds
from tests.tampering.subjects import SCHEMES, Subject, subjects

NETS = {make.__name__: make for make in subjects()}
EVERY = [(net, scheme) for net in NETS for scheme in SCHEMES]
FEW = [
    ("classifier", "qat"),
    ("detector", "int8"),
    ("tabular", "float32"),
    ("classifier", "int16x8"),
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    subjects = {}

    def get(net, scheme):
        if (net, scheme) not in subjects:
            subjects[net, scheme] = Subject(NETS[net], scheme, tmp_path_factory.mktemp("files"))
        return subjects[net, scheme]

    return get


def slipped(one, mutants):
    """Returns the kinds and errors of accepted mutants, and the number of rejected ones."""
    results = [(kind, one.slips(content)) for kind, content in mutants]
    refused = sum(one.refuses(content) for _, content in mutants)
    return [(kind, error) for kind, error in results if error is not None], refused


@pytest.mark.parametrize(("net", "scheme"), FEW)
def test_tampered_files_are_refused(net, scheme, subject):
    one = subject(net, scheme)
    assert not one.refuses(one.content)
    mutants = kinds.mutants(one.content, seed=7, count=len(kinds.KINDS))
    accepted, refused = slipped(one, mutants)
    assert not accepted and refused > len(mutants) / 2


@pytest.mark.slow
@pytest.mark.parametrize(("net", "scheme"), EVERY)
def test_no_kind_of_tampering_slips_through(net, scheme, subject):
    """30 of our own kinds and 30 of others for each of 24 files: 1,440 in all."""
    one = subject(net, scheme)
    assert not one.refuses(one.content)
    mutants = kinds.mutants(one.content, seed=0, count=30)
    mutants += held_out.mutants(one.content, seed=0, count=30)
    accepted, refused = slipped(one, mutants)
    assert not accepted and refused > len(mutants) / 3
