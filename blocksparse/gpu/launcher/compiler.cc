#include "compiler.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

extern char** environ;

namespace blocksparse::gpu {
namespace {

constexpr int kNoCompiler = 3;  // what compile.py ends with where Triton or NVRTC is not installed

// Runs `command`; its output on failure. Another part of the program may reap our child (SIGCHLD ignored): then the
// status is unknown, and the caller looks whether the files are there.
absl::Status run(const std::vector<std::string>& command) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::InternalError(absl::StrCat("pipe: ", strerror(errno)));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  pid_t child;
  const int error = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string output;
  if (error == 0) {
    char buffer[4096];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof(buffer))) > 0 || (got < 0 && errno == EINTR);) {
      if (got > 0) output.append(buffer, got);
    }
  }
  close(ends[0]);
  if (error != 0) return absl::InternalError(absl::StrCat("cannot run ", command[0], ": ", strerror(error)));
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return absl::OkStatus();
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoCompiler) return absl::NotFoundError(output);
  return absl::InternalError(output);
}

// Whether a path is what nobody but the user, root or `owner` can have put there: no link, and nobody else may write
// it.
bool is_trusted(const std::string& path, uid_t owner) {
  struct stat status;
  if (lstat(path.c_str(), &status) != 0 || S_ISLNK(status.st_mode) || (status.st_mode & (S_IWGRP | S_IWOTH)))
    return false;
  return status.st_uid == geteuid() || status.st_uid == 0 || status.st_uid == owner;
}

// The first folder's files of the key. Folders that others may write in are passed over; `refused` tells of the last.
std::string find(const CompilerSettings& settings, const std::string& key, std::string* refused) {
  for (const std::string& folder : settings.folders) {
    std::string found = absl::StrCat(folder, "/", key);
    const std::string manifest = absl::StrCat(found, "/manifest");
    if (access(manifest.c_str(), R_OK) != 0) continue;
    if (absl::c_linear_search(settings.shipped, folder)) return found;
    struct stat status;
    const bool named = &folder != &settings.folders.back() && stat(folder.c_str(), &status) == 0;
    const uid_t owner = named ? status.st_uid : geteuid();  // a folder that the user named is its owner's to fill
    if (is_trusted(folder, owner) && is_trusted(found, owner) && is_trusted(manifest, owner)) return found;
    *refused = absl::StrCat(found, " is not used: it is a link, another user's, or others may write there; ",
                            "chmod -R go-w, or remove it");
  }
  return "";
}

// The key whose machine code runs on the GPU of `key` as well, or nothing: GPUs of 8.1 to 8.9 run what was compiled for
// 8.0, from the same table of launches. What Triton compiles from 9.0 on runs on its own generation alone.
std::string stand_in(const std::string& key) {
  const size_t at = key.rfind("-sm8");
  if (at == std::string::npos || at + 5 != key.size() || key.back() == '0') return "";
  return key.substr(0, key.size() - 1) + "0";
}

absl::Status no_compiler(const CompilerSettings& settings, const std::string& key, const std::string& refused,
                         absl::string_view why) {
  return absl::NotFoundError(absl::StrCat(
      refused, refused.empty() ? "" : "; ", "no compiled kernel ", key, " in ", absl::StrJoin(settings.folders, ", "),
      ", and ", why, ", or compile it on another machine (python blocksparse/gpu/compile.py --out FOLDER ", key,
      ") and put FOLDER/", key, " there"));
}

absl::StatusOr<std::string> find_or_compile(const CompilerSettings& settings, const std::string& key) {
  std::string refused, found = find(settings, key, &refused);
  const std::string other = stand_in(key);
  if (found.empty() && !other.empty()) found = find(settings, other, &refused);
  if (!found.empty()) return found;
  if (settings.command.empty()) {
    return no_compiler(settings, key, refused, "no compiler is set (pip install 'triton>=3.6,<3.10')");
  }
  std::vector<std::string> command = settings.command;
  command.push_back(key);
  absl::Status status = run(command);
  found = find(settings, key, &refused);
  if (!found.empty()) return found;
  if (absl::IsNotFound(status)) return no_compiler(settings, key, refused, status.message());
  if (status.ok() && !refused.empty()) return absl::PermissionDeniedError(refused);
  return absl::InternalError(absl::StrCat("compiling ", key, " failed: ", status.message(),
                                          "\nThe command was: ", absl::StrJoin(command, " ")));
}

}  // namespace

Compiler& Compiler::global() {
  static auto* compiler = new Compiler;  // never destroyed: compile threads may outlive main
  return *compiler;
}

void Compiler::configure(CompilerSettings settings) {
  std::lock_guard<std::mutex> lock(mutex_);
  settings_ = std::move(settings);
  answers_.clear();
}

Compiler::Answer Compiler::start(const std::string& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  Answer& answer = answers_[key];
  if (!answer.valid()) {
    answer = std::async(std::launch::async, find_or_compile, settings_, key).share();
  }
  return answer;
}

void Compiler::request(const std::string& key) { start(key); }

absl::StatusOr<std::string> Compiler::folder(const std::string& key) {
  absl::StatusOr<std::string> folder = start(key).get();
  if (!folder.ok()) {
    std::lock_guard<std::mutex> lock(mutex_);
    answers_.erase(key);
  }
  return folder;
}

}  // namespace blocksparse::gpu
