"""The scheduler: decides which waiting job gets which slots now, says why the others wait, and watches leases."""
