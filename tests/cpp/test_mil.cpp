// MIL text: both dialects, literals to the bit, errors with their place,
// limits.
#include <cstring>
#include <random>

#include "check.h"
#include "mil/number.h"
#include "mil/program.h"

using namespace mlx_ane::mil;

namespace {

/// A program of one function with this body.
std::string with_body(const std::string& body, const std::string& out = "x") {
  return "program(1.3) {\nfunc main<ios18>(tensor<fp16, [1, 4]> x) {\n" + body +
         "\n} -> (" + out + ");\n}";
}

Operation parse_operation(const std::string& text) {
  return parse(with_body(text)).functions.at(0).operations.at(0);
}

Constant parse_value(const std::string& type, const std::string& literal) {
  auto op = parse_operation(
      type + " c = const()[val = " + type + "(" + literal + ")];");
  return *find_attribute(op, "val");
}

template <typename T>
std::vector<T> values(const Constant& constant) {
  auto& bytes = std::get<std::vector<uint8_t>>(constant.data);
  std::vector<T> result(bytes.size() / sizeof(T));
  std::memcpy(result.data(), bytes.data(), bytes.size());
  return result;
}

template <typename T>
T scalar(const std::string& type, const std::string& literal) {
  return values<T>(parse_value(type, literal)).at(0);
}

std::string repeat(const std::string& text, size_t n) {
  std::string result;
  result.reserve(text.size() * n);
  while (n-- > 0) {
    result += text;
  }
  return result;
}

}  // namespace

TEST(verbose_program) {
  auto program = parse(R"(program(1.0)
[buildInfo = dict<tensor<string, []>, tensor<string, []>>({{"coremlc-version", "3505.4.1"}})]
{
  func main<ios16>(tensor<fp16, [1, 8, 1, 32]> x) {
    tensor<int32, []> axis = const()[name = tensor<string, []>("axis"), val = tensor<int32, []>(-1)];
    tensor<fp16, [1, 8, 1, 32]> y = softmax(axis = axis, x = x)[name = tensor<string, []>("y")];
  } -> (y);
})");
  CHECK(program.version == "1.0");
  CHECK(dialect_of(program) == Dialect::ios16);
  CHECK(program.verbose_scalars && !program.shorthand_scalars);
  CHECK(program.build_info.at(0).second == "3505.4.1");
  auto& function = program.functions.at(0);
  CHECK(function.opset == "ios16");
  CHECK(
      (function.inputs.at(0).type.shape == std::vector<int64_t>{1, 8, 1, 32}));
  auto& axis = function.operations.at(0);
  CHECK(as_integer(*find_attribute(axis, "val")) == -1);
  CHECK(name_of(axis) == "axis");
  CHECK(axis.location.line == 5 && axis.location.column == 5);
  auto& y = function.operations.at(1);
  CHECK(y.op == "softmax");
  CHECK(std::get<Reference>(find_input(y, "x")->value).name == "x");
  CHECK(function.outputs == std::vector<std::string>{"y"});
}

TEST(dense_and_sparse_blanks) {
  auto dense = parse(
      "program(1.3)[buildInfo=dict<string,string>({})]{func f<ios17>(){int32 "
      "a=const()[val=int32(1)];}->(a);}");
  auto loose = parse(
      "\xef\xbb\xbf program ( 1.3 )\r\n[ buildInfo = dict < string , string > "
      "( "
      "{ } ) ]\t{ // comment { \" \n func f < ios17 > ( ) { /* a\n*/ int32 a = "
      "const ( ) [ val = int32 ( 1 ) ] ; } - > ( a ) ; }\n\n");
  CHECK(same_meaning(dense, loose));
}

TEST(state_and_unknown_dimensions) {
  auto program = parse(
      "program(1.3) { func main<ios18>(state<tensor<fp16, [1, 2, ?]>> kv) "
      "[FlexibleShapeInformation = tuple<a, b>((\"x]\", {[1]}))] {\n"
      "  tensor<fp16, [1, 2, ?]> y = read_state(input = kv);\n} -> (y); }");
  auto& function = program.functions.at(0);
  CHECK(function.inputs.at(0).type.state);
  CHECK(function.inputs.at(0).type.shape.at(2) == unknown_dim);
  CHECK(
      function.attributes ==
      "FlexibleShapeInformation = tuple<a, b>((\"x]\", {[1]}))");
  CHECK(same_meaning(program, parse(write(program, Dialect::ios18))));
}

TEST(attributes_of_programs) {
  for (auto text :
       {"program(1.3) [buildInfo = dict<string, string>({{\"a\", \"b\"}}), t = "
        "string(\"]\"), u = f([1])] { }",
        "program(1.3) [ t = string(\"]\"), u = f([1])] { }"}) {
    auto program = parse(text);
    CHECK(program.attributes == "t = string(\"]\"), u = f([1])");
    CHECK(same_meaning(program, parse(write(program, Dialect::ios18))));
  }
  CHECK_THROWS(ParseError, "not closed; add ]", parse("program(1.3) [t = 1 {"));
}

TEST(operations_without_outputs) {
  auto text =
      with_body("write_state(data = x, input = kv)[name = string(\"w\")];");
  auto program = parse(text);
  auto& op = program.functions.at(0).operations.at(0);
  CHECK(op.op == "write_state" && op.outputs.empty() && op.inputs.size() == 2);
  CHECK(same_meaning(program, parse(write(program, Dialect::ios18))));
  CHECK_THROWS(
      ParseError, "needs an output", parse_operation("const(fp16(1));"));
}

TEST(several_outputs_tuples_and_brackets) {
  for (auto [open, close] : {std::pair{"", ""}, {"(", ")"}}) {
    auto op = parse_operation(
        std::string(open) + "tensor<fp16, [1]> a, tensor<fp16, [3]> b" + close +
        " = split(x = x, axis = 1)[name = string(\"s\")];");
    CHECK(op.outputs.size() == 2 && op.outputs[1].name == "b");
  }
  auto op = parse_operation(
      "tensor<fp16, [1]> a = concat(values = (x, x, (x, fp16(1))), axis = 1);");
  auto& tuple =
      std::get<std::vector<Argument>>(find_input(op, "values")->value);
  CHECK(tuple.size() == 3);
  CHECK(std::get<std::vector<Argument>>(tuple[2].value).size() == 2);
  op = parse_operation(
      "tensor<fp16, [2]> w = constexpr_affine_dequantize()[axis = int32(0), "
      "scale = s, quantized_data = tensor<int8, [2]>([-128, 127])];");
  CHECK(find_input(op, "scale") && !find_attribute(op, "scale"));
  CHECK(values<int8_t>(*find_attribute(op, "quantized_data")).at(0) == -128);
}

TEST(const_in_every_form) {
  for (auto text :
       {"fp16 c = const()[name = string(\"c\"), val = fp16(0.5)];",
        "fp16 c = const(val = fp16(0.5))[name = string(\"c\")];",
        "fp16 c = const(fp16(0.5))[name = \"c\"];",
        "fp16 c = const()[val = 0.5, name = string(\"c\")];",
        "tensor<fp16, []> c = const(name = string(\"c\"), val = 0x1p-1);"}) {
    auto op = parse_operation(text);
    CHECK(values<uint16_t>(*find_attribute(op, "val")).at(0) == 0x3800);
    CHECK(name_of(op) == "c");
  }
  for (auto text :
       {"const(fp16(0.5))",
        "const(val = fp16(0.5))",
        "const()[val = fp16(0.5), name = string(\"n\")]",
        "fp16(0.5)"}) {
    auto op = parse_operation("fp16 y = f(x = " + std::string(text) + ");");
    auto& value = std::get<Constant>(find_input(op, "x")->value);
    CHECK(values<uint16_t>(value).at(0) == 0x3800);
  }
}

TEST(literals_without_a_type) {
  auto op = parse_operation(
      "int32 y = f(a = -3, b = 1.5e2, c = true, d = \"t\", e = [1, 2], f = "
      "[0.5, 1], g = [], h = [true, false]);");
  auto constant = [&](const char* name) {
    return std::get<Constant>(find_input(op, name)->value);
  };
  CHECK(as_integer(constant("a")) == -3);
  CHECK(values<float>(constant("b")).at(0) == 150.0f);
  CHECK(constant("c").type.dtype == DType::boolean);
  CHECK(as_string(constant("d")) == "t");
  CHECK((as_integers(constant("e")) == std::vector<int64_t>{1, 2}));
  CHECK(constant("f").type == (Type{DType::fp32, {2}, false}));
  CHECK(constant("g").type.shape == std::vector<int64_t>{0});
  CHECK((as_integers(constant("h")) == std::vector<int64_t>{1, 0}));
}

TEST(floats_to_the_bit) {
  CHECK(scalar<uint16_t>("fp16", "0x1p-3") == 0x3000);
  CHECK(scalar<uint16_t>("fp16", "-0x1.8p+1") == 0xc200);
  CHECK(scalar<uint16_t>("fp16", "0x3c00") == 0x3c00);
  CHECK(scalar<uint16_t>("fp16", "2049") == 0x6800);  // ties to even
  CHECK(scalar<uint16_t>("fp16", "2051") == 0x6802);
  CHECK(scalar<uint16_t>("fp16", "65519.99") == 0x7bff);
  CHECK(scalar<uint16_t>("fp16", "65520") == 0x7c00);
  CHECK(scalar<uint16_t>("fp16", "-1e30") == 0xfc00);
  CHECK(scalar<uint16_t>("fp16", "5.9604645e-8") == 1);
  CHECK(scalar<uint16_t>("fp16", "0x1p-25") == 0);
  CHECK(scalar<uint16_t>("fp16", "0x1.8p-25") == 1);
  CHECK(scalar<uint16_t>("fp16", "6.1e-05") == 0x0400 - 1);
  CHECK(scalar<uint16_t>("fp16", "-0.0") == 0x8000);
  CHECK(scalar<uint16_t>("fp16", "inf") == 0x7c00);
  CHECK(scalar<uint16_t>("fp16", "nan") == 0x7e00);
  CHECK(scalar<uint16_t>("bf16", "1.00390625") == 0x3f80);  // ties to even
  CHECK(scalar<uint16_t>("bf16", "1.01171875") == 0x3f82);
  CHECK(scalar<float>("fp32", "16777217") == 16777216.0f);
  CHECK(scalar<float>("fp32", "1.00000017881393432617187499") == 1.00000012f);
  CHECK(scalar<float>("fp32", "1.00000017881393432617187501") == 1.00000024f);
  CHECK(scalar<float>("fp32", "3.4028235e38") == 3.4028235e38f);
  CHECK(scalar<float>("fp32", "1e-45") == 1e-45f);
  CHECK(scalar<double>("fp64", "0.1") == 0.1);
  CHECK(
      scalar<double>("fp64", "123456789012345678901234567890e-10") ==
      123456789012345678901234567890e-10);
  CHECK(scalar<double>("fp64", "1e400") == INFINITY);
  CHECK(scalar<double>("fp64", "1e-400") == 0.0);
}

TEST(every_half_survives_the_text) {
  std::string text;
  for (int bits = 0; bits < 0x10000; ++bits) {
    auto value = static_cast<uint16_t>(bits);
    text.clear();
    append_number(text, DType::fp16, reinterpret_cast<uint8_t*>(&value));
    const char* p = text.data();
    uint16_t back = 0;
    auto error = read_number(
        p,
        text.data() + text.size(),
        DType::fp16,
        reinterpret_cast<uint8_t*>(&back));
    if (error || back != value) {
      CHECK(!"half changed");
      std::printf("  %04x -> %s -> %04x\n", bits, text.c_str(), back);
      return;
    }
  }
}

TEST(random_floats_survive_the_text) {
  std::mt19937_64 random(1);
  for (auto type : {DType::fp32, DType::fp64, DType::bf16}) {
    for (int i = 0; i < 20000; ++i) {
      uint64_t value = random() >> (64 - bits(type));
      uint64_t back = 0;
      std::string text;
      append_number(text, type, reinterpret_cast<uint8_t*>(&value));
      const char* p = text.data();
      auto error = read_number(
          p,
          text.data() + text.size(),
          type,
          reinterpret_cast<uint8_t*>(&back));
      CHECK(!error && back == value);
    }
  }
}

TEST(decimal_floats_match_strtod) {
  std::mt19937_64 random(2);
  char text[64];
  for (int i = 0; i < 20000; ++i) {
    int digits = 1 + static_cast<int>(random() % 20);
    double value = std::ldexp(
        static_cast<double>(random()), static_cast<int>(random() % 200) - 150);
    std::snprintf(text, sizeof(text), "%.*e", digits, value);
    const char* p = text;
    double back = 0;
    read_number(
        p,
        text + std::strlen(text),
        DType::fp64,
        reinterpret_cast<uint8_t*>(&back));
    CHECK(back == std::strtod(text, nullptr));
    float single = 0;
    p = text;
    read_number(
        p,
        text + std::strlen(text),
        DType::fp32,
        reinterpret_cast<uint8_t*>(&single));
    CHECK(single == std::strtof(text, nullptr));
  }
}

TEST(integers_and_their_ranges) {
  CHECK(scalar<int8_t>("int8", "-128") == -128);
  CHECK(scalar<int8_t>("int4", "-8") == -8);
  CHECK(scalar<uint8_t>("uint3", "7") == 7);
  CHECK(scalar<int64_t>("int64", "-9223372036854775808") == INT64_MIN);
  CHECK(scalar<uint64_t>("uint64", "18446744073709551615") == UINT64_MAX);
  CHECK(scalar<int32_t>("int32", "0x10") == 16);
  for (auto [type, literal] :
       {std::pair{"int8", "128"},
        {"int8", "-129"},
        {"int4", "8"},
        {"uint4", "16"},
        {"uint8", "-1"},
        {"uint64", "18446744073709551616"},
        {"int64", "9223372036854775808"}}) {
    CHECK_THROWS(
        ParseError, "out of its type's range", parse_value(type, literal));
  }
  CHECK_THROWS(ParseError, "got a fraction", parse_value("int32", "1.5"));
  CHECK_THROWS(ParseError, "malformed number", parse_value("int32", "12abc"));
  CHECK_THROWS(ParseError, "bit pattern", parse_value("fp16", "0x13c00"));
}

TEST(tensor_literals) {
  auto nested = parse_value("tensor<int32, [2, 3]>", "[[1, 2, 3], [4, 5, 6]]");
  auto flat = parse_value("tensor<int32, [2, 3]>", "[1,2,\n 3,4,5, 6]");
  CHECK(nested == flat);
  CHECK((as_integers(nested) == std::vector<int64_t>{1, 2, 3, 4, 5, 6}));
  auto typed = parse_value("tensor<fp16, [2]>", "[fp16(0.5), fp16(0x1p+0)]");
  CHECK((values<uint16_t>(typed) == std::vector<uint16_t>{0x3800, 0x3c00}));
  auto text = parse_value("tensor<string, [2]>", R"(["a\"\\\n", "é"])");
  CHECK(
      std::get<std::vector<std::string>>(text.data) ==
      (std::vector<std::string>{"a\"\\\n", "é"}));
  CHECK(element_count(parse_value("tensor<fp16, [0]>", "[]").type) == 0);
  CHECK(
      element_count(parse_value("tensor<fp16, [2, 0]>", "[[], []]").type) == 0);
  CHECK_THROWS(
      ParseError, "fewer", parse_value("tensor<int32, [900]>", "[1, 2]"));
  CHECK_THROWS(
      ParseError,
      "has 2 elements",
      parse_value("tensor<int32, [3]>", "[1, 2]"));
  CHECK_THROWS(
      ParseError, "more than", parse_value("tensor<int32, [2]>", "[1, 2, 3]"));
  CHECK_THROWS(
      ParseError,
      "has 1 elements here",
      parse_value("tensor<int32, [2, 2]>", "[[1, 2], [3]]"));
  CHECK_THROWS(
      ParseError,
      "nested 2 deep",
      parse_value("tensor<int32, [4]>", "[[1, 2]]"));
}

TEST(blobs) {
  for (auto text :
       {"path = string(\"@model_path/w.bin\"), offset = uint64(64)",
        "offset = tensor<uint64, []>(64), path = tensor<string, "
        "[]>(\"@model_path/w.bin\")",
        "@path = \"@model_path/w.bin\", offset = 64"}) {
    auto value = parse_value(
        "tensor<fp16, [1000000, 1000]>", "BLOBFILE(" + std::string(text) + ")");
    CHECK((std::get<Blob>(value.data) == Blob{"@model_path/w.bin", 64}));
  }
  for (auto path :
       {"../w", "@model_path/../../w", "/etc/passwd", "a\\\\..\\\\b"}) {
    CHECK_THROWS(
        ParseError,
        "leaves the model's folder",
        parse_value(
            "tensor<fp16, [1]>",
            "BLOBFILE(path = string(\"" + std::string(path) +
                "\"), offset = uint64(64))"));
  }
  CHECK_THROWS(
      ParseError,
      "non-negative",
      parse_value("fp16", "BLOBFILE(path = \"w\", offset = -1)"));
  CHECK_THROWS(
      ParseError, "has no path", parse_value("fp16", "BLOBFILE(offset = 64)"));
}

TEST(errors_show_line_column_and_caret) {
  try {
    parse(with_body("  tensor<fp16, [1, 4]> y = relu(x = x]);", "y"));
    CHECK(!"parsed");
  } catch (const ParseError& error) {
    CHECK(error.location.line == 3 && error.location.column == 38);
    CHECK(
        std::string(error.what()) ==
        "[mlx_ane.mil] line 3, column 38: expected ')' after the arguments, "
        "got "
        "']'.\n    tensor<fp16, [1, 4]> y = relu(x = x]);\n  " +
            std::string(37, ' ') + "^");
  }
  CHECK_THROWS(ParseError, "line 1, column 1", parse(""));
  CHECK_THROWS(ParseError, "expected program", parse("hello"));
  CHECK_THROWS(
      ParseError,
      "is not an element type",
      parse_value("tensor<fp17, []>", "1"));
  CHECK_THROWS(ParseError, "not closed", parse_value("string", "\"abc"));
  CHECK_THROWS(ParseError, "unknown escape", parse_value("string", "\"\\q\""));
  CHECK_THROWS(ParseError, "not closed; add */", parse("program(1.3) /* a"));
  CHECK_THROWS(
      ParseError,
      "are not supported",
      parse_operation("int32 y = f(a = list<x>(1));"));
}

// Texts of up to 10 MB: a loop of squared cost would not end.
TEST(hostile_text_is_refused) {
  std::string ten_mb(10'000'000, ' ');
  auto refused = [](const std::string& text, const char* part) {
    CHECK_THROWS(ParseError, part, parse(text));
  };
  std::string head = with_body("int32 y = f(a = ");
  head.resize(head.find("a = ") + 4);
  refused(std::string("program(1.3) {\0", 15), "NUL");
  refused("program(1.3) { // \xc3\x28", "UTF-8");
  refused("program(1.3) { // \xed\xa0\x80", "UTF-8");
  refused("program(1.3) { // \xf4\x90\x80\x80", "UTF-8");
  refused(head + repeat("(", 5'000'000), "32 levels");
  refused(head + repeat("const(", 1'000'000), "32 levels");
  refused(head + repeat("[", 5'000'000), "nested 33 deep");
  refused(head + "(" + repeat("a,", 5'000'000), "65536");
  refused(head + "tensor<fp16, [9223372036854775808]>(1)", "too large");
  refused(head + "tensor<fp16, [4294967296, 4294967296]>(1)", "too large");
  refused(head + "tensor<fp16, [1073741824]>([1, 2])", "fewer elements");
  refused(head + "tensor<fp16, [" + repeat("1,", 4'000'000), "32 dimensions");
  refused(
      "program(1.3) {" + repeat("func a<b>(){}->();", 500'000),
      "expected func");
  refused(ten_mb, "expected program");
  refused("program(1.3) {" + ten_mb, "expected func");
  refused(repeat("a", 10'000'000), "expected program");
  refused(head + "\"" + repeat("\\n", 5'000'000), "not closed");
  refused(head + "1" + repeat("0", 10'000'000) + ");", "range");
  refused(head + "0x" + repeat("0", 10'000'000) + "p1);", "length");
}

TEST(writer_keeps_the_meaning_in_both_dialects) {
  auto program = parse(with_body(R"(
    fp16 s = const()[val = fp16(nan)];
    tensor<fp32, [2, 2]> m = const()[val = tensor<fp32, [2, 2]>([[1, 2], [3, -inf]])];
    tensor<uint4, [3]> q = const()[val = tensor<uint4, [3]>([0, 7, 15])];
    tensor<string, [2]> t = const()[val = tensor<string, [2]>(["a", "b\t"])];
    tensor<fp16, [1000000000000, 0]> e = const()[val = tensor<fp16, [1000000000000, 0]>([])];
    tensor<fp16, [8]> w = const()[val = tensor<fp16, [8]>(BLOBFILE(path = string("@model_path/w"), offset = uint64(64)))];
    tensor<fp16, [1, 4]> y = f(x = x, v = (x, s, int32(-1)), b = true)[name = string("y")];)"));
  CHECK(same_meaning(program, parse(write(program, Dialect::ios18))));
  auto verbose = parse(write(program, Dialect::ios16));
  CHECK(verbose.version == "1.0");
  CHECK(verbose.functions.at(0).opset == "ios16");
  CHECK(!verbose.shorthand_scalars);
  CHECK(same_meaning(program, parse(write(verbose, Dialect::ios18))));
}

TEST(meaning_is_compared_in_full) {
  auto base =
      with_body("fp16 a = f(x = x, y = fp16(1))[name = string(\"a\")];");
  auto program = parse(base);
  auto changed = [&](const std::string& from, const std::string& to) {
    auto text = base;
    text.replace(text.find(from), from.size(), to);
    return !same_meaning(program, parse(text));
  };
  CHECK(!changed("x = x, y = fp16(1)", "y = fp16(1.0), x = x"));
  CHECK(changed("fp16(1)", "fp16(2)"));
  CHECK(changed("fp16(1)", "x"));
  CHECK(changed("fp16 a", "fp32 a"));
  CHECK(changed("x = x", "z = x"));
  CHECK(changed("\"a\"", "\"b\""));
  CHECK(changed("-> (x)", "-> (a)"));
  // The dialect does not count.
  CHECK(!changed("ios18", "ios17"));
  CHECK(!changed("1.3", "1.0"));
}

CHECK_MAIN()
