"""Train any network with Lightning: schedule, resumable runs, keeping the best weights."""
