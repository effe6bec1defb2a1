"""The compact form's layers."""
