// Not compiled here: no Xcode on the build machine. Reads golden.json of a golden bundle, of which an
// app takes along: its `canary`, the two files that this names, and the files to try.

import Foundation

struct Canary: Decodable {
  struct Saved: Decodable { let file: String, shape: [Int] }
  struct Try: Decodable { let file: String, target: String, unit: String, at_least_db: Double }

  let photo: Saved, expected: Saved  // photo: [1, 3, height, width]
  let position: Int, step: Int
  let tries: [Try]

  static func read(bundle: URL) throws -> Canary {
    struct Golden: Decodable { let canary: Canary }
    let data = try Data(contentsOf: bundle.appendingPathComponent("golden.json"))
    return try JSONDecoder().decode(Golden.self, from: data).canary
  }

  /// The first file of a target that computes on this phone what it should; nil where none does.
  func firstThatWorks<Model>(
    in bundle: URL, target: String, open: (URL, Try) throws -> Model,
    stackOf: (Model, [Float], Int) throws -> [Float]
  ) throws -> Model? {
    let given = try pixels(bundle, photo), wanted = try pixels(bundle, expected)
    for next in tries where next.target == target {
      guard let model = try? open(bundle.appendingPathComponent(next.file), next),
        let stack = try? stackOf(model, given, position), stack.count == 9 * given.count
      else { continue }
      if decibels(stack, wanted) >= next.at_least_db { return model }
    }
    return nil
  }

  /// PSNR of a stack at every `step`-th pixel, down and across; NaN, which passes nothing, of NaN.
  func decibels(_ stack: [Float], _ wanted: [Float]) -> Double {
    let height = photo.shape[2], width = photo.shape[3]
    var error = 0.0, n = 0
    for plane in 0..<stack.count / (height * width) {
      for y in stride(from: 0, to: height, by: step) {
        for x in stride(from: 0, to: width, by: step) {
          let off = Double(stack[(plane * height + y) * width + x] - wanted[n])
          error += off * off
          n += 1
        }
      }
    }
    return 10 * log10(4 * Double(n) / error)
  }

  private func pixels(_ bundle: URL, _ saved: Saved) throws -> [Float] {
    try Data(contentsOf: bundle.appendingPathComponent(saved.file)).map { Float($0) / 127.5 - 1 }
  }
}
