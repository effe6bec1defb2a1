"""The certificate: what was allowed to change in a network, and proof that the rest did not."""
