"""The lowered form's layers."""
