"""What this device trusts: two TUF repositories checked by python-tuf, kept durably, and what both agree on.

`marks` and `clock` decide (pure); `repository` keeps one repository; `store` joins the two.
"""
