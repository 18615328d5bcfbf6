"""The error tree of `models`."""

import error_tree

import models.errors


def test_the_tree_at_the_top_is_the_truth_and_codes_are_stable_and_distinct():
    error_tree.check(models.errors)
