// Not compiled here: no Xcode on the build machine. Reads golden.json of a golden bundle, of which an
// app takes along: its `canary`, the files that this names, and the files to try.

import Foundation

struct Canary: Decodable {
  struct Saved: Decodable { let file: String, shape: [Int] }
  /// What of a file to call for photos of one size, [height, width], as `functions` in manifest.json.
  struct Method: Decodable { let name: String, size: [Int] }
  /// A photo of one size, and what is expected of it at every `step`-th pixel.
  struct Sized: Decodable { let size: [Int], photo: Saved, expected: Saved }
  /// others: what to call for photos of other sizes, each of which is tried too.
  struct Try: Decodable {
    let file: String, target: String, unit: String, at_least_db: Double, others: [Method]
  }

  let photo: Saved, expected: Saved  // photo: [1, 3, height, width]
  let position: Int, step: Int
  let tries: [Try], sizes: [Sized]

  static func read(bundle: URL) throws -> Canary {
    struct Golden: Decodable { let canary: Canary }
    let data = try Data(contentsOf: bundle.appendingPathComponent("golden.json"))
    return try JSONDecoder().decode(Golden.self, from: data).canary
  }

  /// The first file of a target that computes on this phone what it should, at each of its sizes; nil
  /// where none does. stackOf is given the method for another size, nil for the usual one.
  func firstThatWorks<Model>(
    in bundle: URL, target: String, open: (URL, Try) throws -> Model,
    stackOf: (Model, [Float], Int, Method?) throws -> [Float]
  ) throws -> Model? {
    let usual = Sized(size: Array(photo.shape.suffix(2)), photo: photo, expected: expected)
    for next in tries where next.target == target {
      guard let model = try? open(bundle.appendingPathComponent(next.file), next) else { continue }
      let works = try ([nil] + next.others).allSatisfy { (method: Method?) in
        let found = method == nil ? usual : sizes.first { $0.size == method?.size }
        guard let sized = found,
          let stack = try? stackOf(model, pixels(bundle, sized.photo), position, method)
        else { return false }
        return decibels(stack, try pixels(bundle, sized.expected), sized.size) >= next.at_least_db
      }
      if works { return model }
    }
    return nil
  }

  /// PSNR of a stack at every `step`-th pixel, down and across; NaN, which passes nothing, of NaN.
  func decibels(_ stack: [Float], _ wanted: [Float], _ size: [Int]) -> Double {
    let height = size[0], width = size[1]
    guard stack.count == 9 * 3 * height * width else { return .nan }
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
