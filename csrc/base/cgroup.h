/* What a Linux control group lets a process have of the CPUs. */
#ifndef QV_BASE_CGROUP_H
#define QV_BASE_CGROUP_H

#include <stddef.h>

/* The least quota of the process's own group and of those around it, in CPUs, rounded up; 0 where there is none.
 * `membership` is a file as /proc/self/cgroup is, `mount` where the groups lie; of version 2 and of version 1. */
size_t qv_cgroup_quota(const char *membership, const char *mount);

#endif
