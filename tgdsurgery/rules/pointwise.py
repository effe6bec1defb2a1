"""Ops that work element by element but are not marked so by torch."""

from tgdsurgery.rules.registry import rule_for, unite_elementwise

rule_for(
    *("_prelu_kernel", "_to_copy", "native_dropout", "alpha_dropout", "rrelu_with_noise", "clone"),
    *("hardswish", "hardsigmoid", "log_sigmoid_forward", "glu_jvp", "fake_quantize"),
    *("lerp", "where", "masked_fill", "nan_to_num", "bucketize", "_unsafe_view_copy"),
)(unite_elementwise)
