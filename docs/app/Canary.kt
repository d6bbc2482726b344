// Not compiled here: no Android SDK on the build machine. Reads golden.json of a golden bundle, of
// which an app takes along: its `canary`, the two files that this names, and the files to try.

import java.io.File
import kotlin.math.log10
import org.json.JSONObject

class Canary(private val bundle: File) {
    class Try(val file: String, val target: String, val unit: String, val atLeastDb: Double)

    private val about = JSONObject(File(bundle, "golden.json").readText()).getJSONObject("canary")
    private val shape = about.getJSONObject("photo").getJSONArray("shape") // [1, 3, height, width]
    private val step = about.getInt("step")
    private val expected = pixels("expected")
    val photo = pixels("photo")
    val position = about.getInt("position")
    val tries = about.getJSONArray("tries").let { all ->
        List(all.length()) { all.getJSONObject(it) }.map {
            Try(it.getString("file"), it.getString("target"), it.getString("unit"), it.getDouble("at_least_db"))
        }
    }

    /** The first file of a target that computes on this phone what it should; null where none does. */
    fun <Model> firstThatWorks(
        target: String, load: (File, Try) -> Model, stackOf: (Model, FloatArray, Int) -> FloatArray,
    ): Model? = tries.filter { it.target == target }.firstNotNullOfOrNull { next ->
        runCatching { load(File(bundle, next.file), next) }.getOrNull()?.takeIf { model ->
            runCatching { decibels(stackOf(model, photo, position)) >= next.atLeastDb }.getOrDefault(false)
        }
    }

    /** PSNR of a stack at every `step`-th pixel, down and across; NaN, which passes nothing, of NaN. */
    fun decibels(stack: FloatArray): Double {
        val (height, width) = shape.getInt(2) to shape.getInt(3)
        var error = 0.0
        var n = 0
        for (plane in 0 until stack.size / (height * width))
            for (y in 0 until height step step)
                for (x in 0 until width step step) {
                    val off = (stack[(plane * height + y) * width + x] - expected[n++]).toDouble()
                    error += off * off
                }
        return 10 * log10(4 * n / error)
    }

    private fun pixels(name: String): FloatArray {
        val bytes = File(bundle, about.getJSONObject(name).getString("file")).readBytes()
        return FloatArray(bytes.size) { (bytes[it].toInt() and 255) / 127.5f - 1 }
    }
}
