// The files of one program: staged privately, or kept in the compiled cache.
#include "device/apple/program_files.h"

#include <algorithm>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>
#include <vector>

#include "device/apple/system.h"
#include "host/cache.h"

namespace mlx_ane::apple {

namespace fs = std::filesystem;

namespace {

constexpr const char* manifest_name = "manifest";
constexpr const char* model_prefix = "@model_path/";
/// Entries kept; an entry is some tens of kilobytes.
constexpr size_t cache_entries = 512;

/// Keys of cache entries that this process has loaded.
std::mutex live_mutex;
std::set<std::string>& live_keys() {
  static auto* keys = new std::set<std::string>;
  return *keys;
}

std::string read(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream content;
  content << stream.rdbuf();
  return content.str();
}

/// Where a weight of the program lies beside model.mil.
fs::path weight_file(const std::string& name) {
  fs::path relative(
      name.starts_with(model_prefix) ? name.substr(sizeof("@model_path/") - 1)
                                     : name);
  auto climbs = std::find(relative.begin(), relative.end(), fs::path(".."));
  if (relative.empty() || relative.is_absolute() || climbs != relative.end()) {
    throw DeviceError(
        Cause::compile_failed,
        "[mlx_ane.ane] got weight file \"" + name +
            "\", need a path below @model_path.");
  }
  return relative;
}

void stage(const fs::path& directory, const Source& source) {
  fs::create_directories(directory / "weights");
  fs::permissions(directory, fs::perms::owner_all);
  write_file(directory / "model.mil", source.text.data(), source.text.size());
  write_weights(directory, source);
}

/// One line "size hash name" for each file but the manifest itself.
std::set<std::string> digest(const fs::path& directory) {
  std::set<std::string> lines;
  for (auto& entry : fs::recursive_directory_iterator(directory)) {
    auto name = entry.path().lexically_relative(directory).generic_string();
    if (entry.is_regular_file() && !name.starts_with(manifest_name)) {
      auto content = read(entry.path());
      lines.insert(
          std::to_string(content.size()) + " " +
          hash_text(content.data(), content.size()) + " " + name);
    }
  }
  return lines;
}

/// Files that were recorded are as they were; later ones do no harm.
bool as_recorded(const fs::path& directory) {
  std::ifstream manifest(directory / manifest_name);
  if (!manifest) {
    return false;
  }
  auto lines = digest(directory);
  size_t recorded = 0;
  for (std::string line; std::getline(manifest, line); ++recorded) {
    if (!lines.contains(line)) {
      return false;
    }
  }
  return recorded > 0;
}

/// The entry holds this very program, and every file as it was recorded.
bool intact(const fs::path& directory, const Source& source) {
  if (!as_recorded(directory) || read(directory / "model.mil") != source.text) {
    return false;
  }
  return std::all_of(
      source.weights.begin(), source.weights.end(), [&](auto& weight) {
        auto content = read(directory / weight_file(weight.first));
        return std::equal(
            content.begin(),
            content.end(),
            reinterpret_cast<const char*>(weight.second->data()),
            reinterpret_cast<const char*>(
                weight.second->data() + weight.second->size()));
      });
}

std::string cache_key(const Source& source, const std::string& chip) {
  auto content = source.text;
  for (auto& [name, bytes] : source.weights) {
    content += name + hash_text(bytes->data(), bytes->size());
  }
  return file_key(os_build()) + "-" + file_key(chip) + "-" +
         hash_text(content.data(), content.size());
}

/// Drops the entries used longest ago, except those that anyone holds.
void prune(const fs::path& root) {
  std::vector<std::pair<fs::file_time_type, fs::path>> entries;
  std::error_code ignored;
  for (auto& entry : fs::directory_iterator(root, ignored)) {
    if (entry.is_directory(ignored)) {
      entries.emplace_back(
          fs::last_write_time(entry.path(), ignored), entry.path());
    }
  }
  std::sort(entries.begin(), entries.end());
  for (size_t i = 0; i + cache_entries < entries.size(); ++i) {
    auto& directory = entries[i].second;
    auto lock_file = fs::path(directory).concat(".lock");
    FileLock lock(lock_file, FileLock::Wait::no);
    if (lock.held()) {
      fs::remove_all(directory, ignored);
      fs::remove(lock_file, ignored);
    }
  }
}

}  // namespace

void write_file(const fs::path& file, const void* bytes, size_t size) {
  std::ofstream stream(file, std::ios::binary | std::ios::trunc);
  stream.write(static_cast<const char*>(bytes), size);
  stream.close();
  if (!stream) {
    throw DeviceError(
        Cause::compile_failed,
        "[mlx_ane.ane] got an error on writing " + file.string() +
            ", need room for program files, free disk space.");
  }
}

void write_weights(const fs::path& directory, const Source& source) {
  for (auto& [name, bytes] : source.weights) {
    auto file = directory / weight_file(name);
    fs::create_directories(file.parent_path());
    write_file(file, bytes->data(), bytes->size());
  }
}

std::unique_ptr<ProgramFiles> ProgramFiles::in_private(const Source& source) {
  return in_directory(source, make_private_directory());
}

std::unique_ptr<ProgramFiles> ProgramFiles::in_directory(
    const Source& source, const fs::path& directory) {
  std::unique_ptr<ProgramFiles> files(new ProgramFiles);
  files->directory_ = directory;
  files->restage(source);
  return files;
}

std::unique_ptr<ProgramFiles> ProgramFiles::in_cache(
    const Source& source, const std::string& chip) {
  auto root = host::cache_directory() / "programs";
  auto key = cache_key(source, chip);
  std::error_code error;
  fs::create_directories(root, error);
  {
    std::lock_guard lock(live_mutex);
    if (error || !live_keys().insert(key).second) {
      return in_private(source);
    }
  }
  std::unique_ptr<ProgramFiles> files(new ProgramFiles);
  files->key_ = key;
  files->directory_ = root / key;
  files->lock_ = FileLock(root / (key + ".lock"), FileLock::Wait::yes);
  if (!files->lock_.held()) {
    return in_private(source);
  }
  files->compiled_ = intact(files->directory_, source);
  if (!files->compiled_) {
    try {
      files->restage(source);
    } catch (const std::runtime_error& error) {  // there may be room elsewhere
      host::warn_not_kept("compiled programs", root, error.what());
      return in_private(source);
    }
    prune(root);
  }
  return files;
}

ProgramFiles::~ProgramFiles() {
  if (!in_same_process()) {
    return;
  }
  std::error_code ignored;
  if (!cached() || (!compiled_ && lock_.held())) {
    fs::remove_all(directory_, ignored);
  }
  if (cached()) {
    std::lock_guard lock(live_mutex);
    live_keys().erase(key_);
  }
}

void ProgramFiles::restage(const Source& source) {
  fs::remove_all(directory_);
  compiled_ = false;
  stage(directory_, source);
}

void ProgramFiles::settle() {
  if (!cached()) {
    return;
  }
  if (compiled_) {
    std::error_code ignored;
    fs::last_write_time(directory_, fs::file_time_type::clock::now(), ignored);
  } else {
    std::string text;
    for (auto& line : digest(directory_)) {
      text += line + "\n";
    }
    // Renamed into place: a half-written manifest is never seen.
    auto draft = directory_ / (std::string(manifest_name) + ".new");
    try {
      write_file(draft, text.data(), text.size());
      fs::rename(draft, directory_ / manifest_name);
      compiled_ = true;
    } catch (const std::runtime_error& error) {
      // The next process compiles it anew.
      host::warn_not_kept(
          "compiled programs", directory_.parent_path(), error.what());
    }
  }
  lock_ = FileLock();
}

}  // namespace mlx_ane::apple
