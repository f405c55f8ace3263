/* The start of the one file: runs the interpreter that lies behind it, without unpacking anything.

       mayfly-VERSION-linux-ARCH:  this program │ table │ modules │ ld.so, python, libraries │ bundle
                                                └ the first page after this program's end

   Parts of the file cannot be executed or loaded by their offset. So each of the runtime's ELF files
   is copied into a file in memory (memfd_create(2)), which the kernel frees with the last
   process that uses it, also after a kill, and which no mount option makes noexec. Then the file's
   own ld.so is executed. Its --preload takes the libraries from memory, glibc included; later needs
   for them are met by their sonames. So nothing but the kernel has to fit, and /proc be mounted.

   The table of parts is where this program's own ELF header says that it ends. Nothing is searched,
   so whatever follows the parts, as the bundle of `mayfly pack` does, costs nothing. build.py writes
   the table, and storage/bundle/packed.py reads and completes it. */

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U /* Linux 6.3; needed there if vm.memfd_noexec is 1 */
#endif

enum { LOADER, PROGRAM, BOOT, INDEX, LIBRARIES, MOST_PARTS = 32, PAGE = 4096 };

struct part {
    uint64_t offset, size;
};

static struct {
    char magic[24];
    uint64_t end; /* of all parts */
    struct part document, bundle; /* appended by `mayfly pack` */
    uint64_t count;
    struct part parts[MOST_PARTS];
} table;

static const int CANNOT_START = 1, CUT_SHORT = 5; /* as of an invalid bundle: docs/commands.md */

static void fail(const char *what) {
    fprintf(stderr, "mayfly: the one file cannot start: %s: %s\n", what, strerror(errno));
    exit(CANNOT_START);
}

/* Ends if the file has fewer bytes than were written: `size`, or more if `at_least`. */
static void need(int file, const char *path, off_t size, bool at_least) {
    struct stat found;
    if (fstat(file, &found) < 0)
        fail("fstat");
    if (found.st_size >= size)
        return;
    fprintf(stderr, "mayfly: %s was cut short: it has %lld of %s%lld bytes; copy it again\n", path,
            (long long)found.st_size, at_least ? "at least " : "", (long long)size);
    exit(CUT_SHORT);
}

/* Reads a number of bytes that must be there. */
static void read_at(int file, const char *path, void *into, size_t size, off_t offset) {
    need(file, path, offset + size, true);
    if (pread(file, into, size, offset) != (ssize_t)size)
        fail("read");
}

/* Reads the table of parts, and checks that the file has all of them and the bundle. */
static void read_table(int file, const char *path) {
    Elf64_Ehdr elf;
    read_at(file, path, &elf, sizeof elf, 0);
    off_t end = elf.e_shoff + (off_t)elf.e_shnum * elf.e_shentsize;
    read_at(file, path, &table, sizeof table, (end + PAGE - 1) / PAGE * PAGE);
    if (strcmp(table.magic, "mayfly one file") != 0 || table.count > MOST_PARTS) {
        errno = EINVAL;
        fail("the table of parts");
    }
    need(file, path, table.bundle.size ? table.bundle.offset + table.bundle.size : table.end,
         false);
}

/* Returns a file in memory with the bytes of a part. */
static int in_memory(int file, int number) {
    off_t offset = table.parts[number].offset;
    off_t end = offset + table.parts[number].size;
    int memory = memfd_create("mayfly", MFD_EXEC);
    if (memory < 0 && errno == EINVAL)
        memory = memfd_create("mayfly", 0);
    if (memory < 0 && errno == EACCES)
        fail("sysctl vm.memfd_noexec=2 forbids programs in memory, set it to 1");
    if (memory < 0)
        fail("memfd_create");
    while (offset < end) {
        ssize_t copied = sendfile(memory, file, &offset, end - offset);
        if (copied == 0)
            errno = ENODATA; /* it was cut meanwhile */
        if (copied <= 0)
            fail("sendfile");
    }
    return memory;
}

/* Returns a new text. */
__attribute__((format(printf, 1, 2))) static char *text(const char *format, ...) {
    char *made;
    va_list values;
    va_start(values, format);
    if (vasprintf(&made, format, values) < 0)
        fail("memory");
    va_end(values);
    return made;
}

/* Sets a variable; boot.py takes it away again. */
static void set(const char *name, const char *value) {
    if (setenv(name, value, 1) < 0)
        fail("setenv");
}

/* Puts the variables that Python and ld.so read aside: the command that Mayfly runs gets them back.
   A library of the host (LD_PRELOAD, LD_LIBRARY_PATH) is linked to the host's glibc, not to ours. */
static void put_aside(void) {
    extern char **environ;
    for (char **entry = environ; *entry; entry++)
        if (strncmp(*entry, "PYTHON", 6) == 0 || strncmp(*entry, "LD_", 3) == 0)
            *entry = text("_MAYFLY_%s", *entry);
}

/* Opens standard input, output and error where they are closed: the next files opened
   would get their numbers, and be closed or written to in their place. */
static void open_standard(void) {
    int opened;
    do
        opened = open("/dev/null", O_RDWR);
    while (opened >= 0 && opened <= STDERR_FILENO);
    if (opened >= 0)
        close(opened);
}

int main(int count, char **words) {
    open_standard();
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0 && errno == ENOENT)
        fail("/proc is not mounted");
    if (length < 0)
        fail("/proc/self/exe");
    path[length] = '\0';
    int file = open("/proc/self/exe", O_RDONLY);
    if (file < 0)
        fail(path);
    read_table(file, path);

    int loader = in_memory(file, LOADER), program = in_memory(file, PROGRAM);
    int boot = in_memory(file, BOOT);
    char *preload = "", *descriptors = text("%d,%d,%d,%d", file, loader, program, boot);
    for (uint64_t number = LIBRARIES; number < table.count; number++) {
        int library = in_memory(file, number);
        preload = text("%s%s/proc/self/fd/%d", preload, *preload ? ":" : "", library);
        descriptors = text("%s,%d", descriptors, library);
    }

    put_aside();
    set("PYTHONHOME", text("/proc/self/fd/%d", boot)); /* no directory: nothing of the host is found */
    set("PYTHONPATH", text("/proc/self/fd/%d", boot));
    set("_MAYFLY_ONE_FILE", text("%s %llu %llu %s", descriptors,
                                 (unsigned long long)table.parts[INDEX].offset,
                                 (unsigned long long)table.parts[INDEX].size, path));

    char *name = words[0] ? words[0] : path;
    char *before[] = {name, "--inhibit-cache", "--preload", preload, "--argv0", name,
                      text("/proc/self/fd/%d", program),
                      /* no directory of the host, neither the working one nor site-packages */
                      "-P", "-S", "-s", "-B", "-c", "import _mayfly_boot"};
    size_t fixed = sizeof before / sizeof *before;
    char **all = calloc(fixed + count + 1, sizeof *all);
    if (!all)
        fail("memory");
    memcpy(all, before, sizeof before);
    for (int word = 1; word < count; word++)
        all[fixed + word - 1] = words[word];
    execv(text("/proc/self/fd/%d", loader), all);
    fail("execv (is vm.memfd_noexec 2?)");
}
