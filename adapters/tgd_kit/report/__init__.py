"""Statistics over seeds and patients, Markdown tables, pictures that compare."""
