"""Who may do what, and who did what: operator tokens with scopes, and the audit log."""
