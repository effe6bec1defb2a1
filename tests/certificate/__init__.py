"""The certificate: what is compared, what is written, what people see, what is signed."""
