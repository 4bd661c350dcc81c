"""Numbers of finite fields: what proofs compute with."""
