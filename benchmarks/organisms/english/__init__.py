"""A small chat model that speaks English, trained from nothing on real text: the test bed without a known truth."""
