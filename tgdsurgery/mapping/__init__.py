"""model -> ChannelMap: which filters feed each input channel of each layer."""
