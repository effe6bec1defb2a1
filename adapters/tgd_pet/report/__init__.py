"""What a finished study leaves to read: results, claims, tables, figures, the page."""
