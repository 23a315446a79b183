// Source lines of instructions, from this library's debug information.
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include "check.h"

namespace emu {
std::string source_line(void* pc) {
  Dl_info info;
  if (!dladdr(pc, &info) || !info.dli_fname) return "?";
  const size_t offset = reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  std::string command = "addr2line -e '";
  for (const char* c = info.dli_fname; *c; ++c) command += *c == '\'' ? std::string("'\\''") : std::string(1, *c);
  char b[512];
  snprintf(b, sizeof b, "' %#zx 2>/dev/null", offset);
  command += b;
  std::string line;
  if (FILE* p = popen(command.c_str(), "r")) {
    if (fgets(b, sizeof b, p)) line = b;
    pclose(p);
  }
  line.erase(line.find_last_not_of('\n') + 1);
  if (const size_t more = line.find(" (discriminator"); more != std::string::npos) line.erase(more);
  // sources are compiled in the repository's root, which the debug information calls `.`
  if (!line.empty() && line[0] != '?') return line.compare(0, 2, "./") ? line : line.substr(2);
  snprintf(b, sizeof b, "%s+%#zx", info.dli_sname ? info.dli_sname : info.dli_fname, offset);
  return b;
}

std::string where_pc(const Fiber& f, void* pc) {
  const std::string line = source_line(pc);
  const std::string at = where(f, {});
  return at.substr(0, at.find("?:0")) + line;
}
}  // namespace emu
