#include "base/cgroup.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PATH_BYTES ((size_t)4096)

/* The first numbers in a file; how many there are, 0 where there is no file. */
static int read_numbers(const char *folder, const char *name, long *first, long *second) {
    char path[MAX_PATH_BYTES + 64];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path) {
        return 0;
    }
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return 0;
    }
    int count = fscanf(file, "%ld %ld", first, second);
    fclose(file);
    return count > 0 ? count : 0;
}

/* A group's own quota; 0: none. "max" is no number. */
static size_t own_quota(const char *folder, bool second_version) {
    long quota = -1, period = 100000, unused;
    if (second_version) {
        (void)read_numbers(folder, "cpu.max", &quota, &period);
    } else if (read_numbers(folder, "cpu.cfs_quota_us", &quota, &unused) > 0) {
        (void)read_numbers(folder, "cpu.cfs_period_us", &period, &unused);
    }
    return quota > 0 && period > 0 ? (size_t)((quota - 1) / period + 1) : 0;
}

/* The least of folder/group and the groups around it, up to the folder itself. In a container the folder may be the
 * process's own group already, and the path one that only the host knows. */
static size_t least_quota(const char *folder, const char *group, bool second_version) {
    char path[MAX_PATH_BYTES];
    size_t root = strlen(folder), least = 0;
    if ((size_t)snprintf(path, sizeof path, "%s%s", folder, group) >= sizeof path) {
        return 0;
    }
    for (char *end = path + strlen(path); end != NULL; end = strrchr(path + root, '/')) {
        *end = '\0';
        size_t quota = own_quota(path, second_version);
        least = quota != 0 && (least == 0 || quota < least) ? quota : least;
    }
    return least;
}

static bool names_cpu(const char *controllers) {
    for (const char *at = controllers; at != NULL; at = strchr(at, ',')) {
        at += *at == ',' ? 1 : 0;
        if (strncmp(at, "cpu", 3) == 0 && (at[3] == ',' || at[3] == '\0')) {
            return true;
        }
    }
    return false;
}

size_t qv_cgroup_quota(const char *membership, const char *mount) {
    FILE *file = fopen(membership, "r");
    if (file == NULL) {
        return 0;
    }
    char line[MAX_PATH_BYTES], first_version[MAX_PATH_BYTES];
    size_t least = 0;
    bool whole = (size_t)snprintf(first_version, sizeof first_version, "%s/cpu", mount) < sizeof first_version;
    while (whole && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0'; /* number:controllers:/group; version 2 names no controllers */
        char *controllers = strchr(line, ':'), *group = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (group == NULL || group[1] != '/') {
            continue;
        }
        *group++ = '\0';
        size_t quota = 0;
        if (controllers[1] == '\0') {
            quota = least_quota(mount, group, true);
        } else if (names_cpu(controllers + 1)) {
            quota = least_quota(first_version, group, false);
        }
        least = quota != 0 && (least == 0 || quota < least) ? quota : least;
    }
    fclose(file);
    return least;
}
