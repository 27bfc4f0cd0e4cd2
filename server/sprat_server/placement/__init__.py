"""Which module runs on which device of a site: the problem, what a plan costs, exact and quick ways to find one."""
