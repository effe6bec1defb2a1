"""Short trials on the user's own data, and what they speak for: TGD at some share and flow, or something else."""
