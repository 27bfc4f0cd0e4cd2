"""What this device trusts: two TUF repositories checked by python-tuf, kept durably, and what both agree on.

`marks` decides, and `clock`; `workflow` is python-tuf's, held against both; `repository` keeps one repository durably;
`store` joins the two.
"""
