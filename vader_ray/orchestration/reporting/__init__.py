"""HTML reports and figures about past runs."""
