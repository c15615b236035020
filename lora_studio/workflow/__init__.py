"""All stages of a project, one after the other: curate, tag, plan, train, test and release."""
