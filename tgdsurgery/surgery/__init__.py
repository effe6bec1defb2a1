"""TGDPlan -> TGD network: the two forms, and the plain network back out of them."""
