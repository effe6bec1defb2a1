"""ChannelMap -> TGDPlan: score the kernels, gather the scores onto filters, decide."""
