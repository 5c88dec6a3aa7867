"""Many runs of one model side by side, and the pages that show them."""
