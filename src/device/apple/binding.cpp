// Which surface goes to which symbol of a loaded program.
#include "device/apple/binding.h"

#include <algorithm>
#include <numeric>
#include <optional>

namespace mlx_ane::apple {

namespace {

std::vector<Symbol> in_ascii_order(const std::vector<Port>& ports) {
  std::vector<size_t> order(ports.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return ports[a].name < ports[b].name;
  });
  std::vector<Symbol> symbols;
  for (size_t i = 0; i < order.size(); ++i) {
    symbols.push_back({order[i], static_cast<long long>(i)});
  }
  return symbols;
}

/// The symbols of procedure 0 in its own order; all of them where the model
/// does not list procedures.
std::vector<size_t> symbol_order(
    id procedure, const char* key, size_t symbols) {
  auto indices = lookup(procedure, key);
  std::vector<size_t> order;
  for (size_t i = 0; i < count(indices); ++i) {
    order.push_back(
        send<unsigned long long>(element(indices, i), "unsignedLongLongValue"));
  }
  if (order.empty()) {
    order.resize(symbols);
    std::iota(order.begin(), order.end(), 0);
  }
  return order;
}

/// nullopt unless every port is named exactly once.
std::optional<std::vector<Symbol>> by_name(
    const std::vector<Port>& ports,
    id symbols,
    const std::vector<size_t>& order) {
  if (order.size() != ports.size()) {
    return std::nullopt;
  }
  std::vector<Symbol> bound;
  std::vector<bool> taken(ports.size());
  for (auto index : order) {
    if (index >= count(symbols)) {
      return std::nullopt;
    }
    auto name = to_text(element(symbols, index));
    name = name.substr(0, name.find('@'));  // Outputs read "name@output".
    auto port = std::find_if(ports.begin(), ports.end(), [&](auto& candidate) {
      return candidate.name == name;
    });
    auto place = static_cast<size_t>(port - ports.begin());
    if (port == ports.end() || taken[place]) {
      return std::nullopt;
    }
    taken[place] = true;
    bound.push_back({place, static_cast<long long>(index)});
  }
  return bound;
}

long long whole_number(id object) {
  return responds(object, "longLongValue")
             ? send<long long>(object, "longLongValue")
             : 0;
}

/// RowStride of each port, or PlaneStride where a plane is one row (ironmill).
/// What no row could have is left out.
void read_strides(id attributes, const Source& source, Binding& binding) {
  auto status = lookup(attributes, "NetworkStatusList");
  auto network = count(status) > 0 ? element(status, 0) : nullptr;
  auto read = [&](const char* key, const std::vector<Port>& ports) {
    auto list = lookup(network, key);
    for (size_t i = 0; i < count(list); ++i) {
      auto name = to_text(lookup(element(list, i), "Name"));
      name = name.substr(0, name.find('@'));
      auto port = std::find_if(ports.begin(), ports.end(), [&](auto& p) {
        return p.name == name && p.shape.size() >= 2;
      });
      if (port == ports.end()) {
        continue;
      }
      bool flat = port->shape[port->shape.size() - 2] == 1;
      auto stride = whole_number(
          lookup(element(list, i), flat ? "PlaneStride" : "RowStride"));
      auto least =
          port->shape.back() * static_cast<int64_t>(port->element_size);
      if (stride >= least && stride <= 2 * least + 4096 && stride % 16 == 0) {
        binding.row_bytes[name] = static_cast<size_t>(stride);
        binding.facts["stride of " + name] = std::to_string(stride);
      }
    }
  };
  read("LiveInputList", source.inputs);
  read("LiveOutputList", source.outputs);
}

/// "ANEFModelDescription NetworkStatusList", so that a report shows what else
/// could be read.
std::string keys_of(id dictionary) {
  auto keys =
      responds(dictionary, "allKeys") ? send(dictionary, "allKeys") : nullptr;
  std::vector<std::string> names;
  for (size_t i = 0; i < count(keys); ++i) {
    names.push_back(to_text(element(keys, i)));
  }
  std::sort(names.begin(), names.end());
  std::string text;
  for (auto& name : names) {
    text += (text.empty() ? "" : " ") + name;
  }
  return text;
}

}  // namespace

Binding bind_ports(id model, const Source& source) {
  auto inner = responds(model, "model") ? send(model, "model") : nullptr;
  auto holder = responds(inner, "modelAttributes") ? inner : model;
  auto attributes = responds(holder, "modelAttributes")
                        ? send(holder, "modelAttributes")
                        : nullptr;
  auto description = lookup(attributes, "ANEFModelDescription");
  // Reports place the procedures in either dictionary.
  auto procedures = lookup(description, "ANEFModelProcedures");
  if (procedures == nullptr) {
    procedures = lookup(attributes, "ANEFModelProcedures");
  }
  auto procedure = count(procedures) > 0 ? element(procedures, 0) : nullptr;
  auto bind = [&](const std::vector<Port>& ports,
                  const char* symbols_key,
                  const char* indices_key) {
    auto symbols = lookup(description, symbols_key);
    return by_name(
        ports, symbols, symbol_order(procedure, indices_key, count(symbols)));
  };
  auto inputs = bind(
      source.inputs,
      "kANEFModelInputSymbolsArrayKey",
      "ANEFModelInputSymbolIndexArray");
  auto outputs = bind(
      source.outputs,
      "kANEFModelOutputSymbolsArrayKey",
      "ANEFModelOutputSymbolIndexArray");
  Binding binding;
  if (inputs && outputs) {
    binding.inputs = *inputs;
    binding.outputs = *outputs;
    binding.by_attributes = true;
  } else {
    binding.inputs = in_ascii_order(source.inputs);
    binding.outputs = in_ascii_order(source.outputs);
  }
  binding.facts["ports bound by"] =
      binding.by_attributes ? "name" : "ASCII order";
  binding.facts["attributes"] = keys_of(attributes);
  read_strides(attributes, source, binding);
  return binding;
}

}  // namespace mlx_ane::apple
